//! The `homegrown` command.

fn main() {}
