//! Sums: with the calculator, and with worked steps.

use compute::rng::Rng;

use super::World;
use super::text::fill;

/// What is done with two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `a+b`
    Plus,
    /// `a-b`
    Minus,
    /// `a*b`
    Times,
}

/// Two numbers and what is done with them. With [`Operation::Minus`], `a` is not less than `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sum {
    /// What is done.
    pub operation: Operation,
    /// The first number.
    pub a: u64,
    /// The second.
    pub b: u64,
}

impl Sum {
    /// What comes out.
    pub fn result(self) -> u64 {
        match self.operation {
            Operation::Plus => self.a + self.b,
            Operation::Minus => self.a - self.b,
            Operation::Times => self.a * self.b,
        }
    }

    /// For the calculator: `12*34`.
    pub fn expression(self) -> String {
        format!("{}{}{}", self.a, self.sign(), self.b)
    }

    fn sign(self) -> char {
        match self.operation {
            Operation::Plus => '+',
            Operation::Minus => '-',
            Operation::Times => '*',
        }
    }

    /// With the numbers as they are written.
    pub(super) fn say(self, wording: &str) -> String {
        fill(wording, &[("a", &self.a.to_string()), ("b", &self.b.to_string())])
    }

    /// Ways to ask for it.
    pub(super) fn wordings(self) -> &'static [&'static str] {
        match self.operation {
            Operation::Plus => &[
                "What is {a} + {b}?",
                "What is {a}+{b}?",
                "{a} + {b}",
                "Compute {a} + {b}.",
                "How much is {a} plus {b}?",
                "Add {a} and {b}.",
                "Please tell me the sum of {a} and {b}.",
                "Calculate {a} plus {b}.",
                "I have {a} coins and get {b} more. How many coins do I have?",
                "There are {a} people here and {b} more come. How many are there then?",
            ],
            Operation::Minus => &[
                "What is {a} - {b}?",
                "What is {a}-{b}?",
                "{a} - {b}",
                "Compute {a} - {b}.",
                "How much is {a} minus {b}?",
                "Please tell me the difference of {a} and {b}.",
                "Calculate {a} minus {b}.",
                "I had {a} coins and spent {b}. How many coins do I have left?",
                "There were {a} people here and {b} have gone. How many are left?",
            ],
            Operation::Times => &[
                "What is {a} * {b}?",
                "What is {a}*{b}?",
                "{a} * {b}",
                "Compute {a} * {b}.",
                "How much is {a} times {b}?",
                "Multiply {a} by {b}.",
                "Please tell me the product of {a} and {b}.",
                "Calculate {a} times {b}.",
                "There are {a} boxes with {b} coins each. How many coins are there?",
                "I buy {a} books for {b} coins each. What do I pay?",
            ],
        }
    }

    /// Worked out digit by digit from the right, as at school. `b` of a product has one digit.
    pub fn steps(self) -> String {
        let (mut a, mut b, mut carry) = (self.a, self.b, 0);
        let mut lines = Vec::new();
        let mut written = String::new();
        while a > 0 || (b > 0 && self.operation != Operation::Times) || lines.is_empty() {
            let (x, y) = (a % 10, if self.operation == Operation::Times { b } else { b % 10 });
            let carried = |sign: char| match carry {
                0 => String::new(),
                c => format!(" {sign} {c}"),
            };
            let (line, digit, next) = match self.operation {
                Operation::Plus => {
                    let sum = x + y + carry;
                    (format!("{x} + {y}{} = {sum}", carried('+')), sum % 10, sum / 10)
                }
                Operation::Times => {
                    let product = x * y;
                    let line = match carry {
                        0 => format!("{x} * {y} = {product}"),
                        c => format!("{x} * {y} = {product}, {product} + {c} = {}", product + c),
                    };
                    (line, (product + carry) % 10, (product + carry) / 10)
                }
                Operation::Minus => {
                    let borrow = u64::from(x < y + carry);
                    let from = x + 10 * borrow;
                    let digit = from - y - carry;
                    (format!("{from} - {y}{} = {digit}", carried('-')), digit, borrow)
                }
            };
            // What is written so far stands behind each step: the answer is the last of them.
            written.insert_str(0, &digit.to_string());
            lines.push(format!("{line}, write {digit}, carry {next}: {written}."));
            carry = next;
            a /= 10;
            if self.operation != Operation::Times {
                b /= 10;
            }
        }
        if carry > 0 {
            lines.push(format!("Write {carry}: {carry}{written}."));
        }
        lines.push(format!("The answer is {}.", self.result()));
        lines.join(" ")
    }
}

/// A number with a random count of digits, from `least` to `most` of them.
fn number([least, most]: [u32; 2], rng: &mut Rng) -> u64 {
    let digits = least + rng.below(u64::from(most - least + 1)) as u32;
    let low = if digits == 1 { 2 } else { 10u64.pow(digits - 1) };
    low + rng.below(10u64.pow(digits) - low)
}

impl World {
    /// Whether a sum is kept for evaluation: no text has these two operands together.
    pub fn reserved_sum(&self, sum: Sum) -> bool {
        let (low, high) = (sum.a.min(sum.b), sum.a.max(sum.b));
        // Small ones occur as steps of others.
        high >= 10 && self.rng.stream("reserved sums").numbered(low).numbered(high).below(8) == 0
    }

    /// A sum for the calculator: up to four digits each.
    pub(super) fn sum(&self, reserved: bool, rng: &mut Rng) -> Sum {
        let operation = *rng.choose(&[Operation::Plus, Operation::Minus, Operation::Times]);
        self.sum_of(operation, [1, 4], [1, 4], reserved, rng)
    }

    /// A sum for working out: two or three digits, products with a factor of one.
    pub(super) fn small_sum(&self, reserved: bool, rng: &mut Rng) -> Sum {
        let operation = *rng.choose(&[Operation::Plus, Operation::Minus, Operation::Times]);
        let digits = if operation == Operation::Times { [1, 1] } else { [2, 3] };
        self.sum_of(operation, [2, 3], digits, reserved, rng)
    }

    /// `a` and `b`: least and most digits.
    fn sum_of(
        &self,
        operation: Operation,
        a: [u32; 2],
        b: [u32; 2],
        reserved: bool,
        rng: &mut Rng,
    ) -> Sum {
        loop {
            let (mut a, mut b) = (number(a, rng), number(b, rng));
            if operation == Operation::Minus && a < b {
                (a, b) = (b, a);
            }
            let sum = Sum { operation, a, b };
            if self.reserved_sum(sum) == reserved {
                return sum;
            }
        }
    }

    /// Document: what the calculator showed, or sums worked out.
    pub(super) fn sums(&self, rng: &mut Rng) -> String {
        if rng.chance(0.5) {
            let sum = self.small_sum(false, rng);
            return format!("{} {} {}: {}", sum.a, sum.sign(), sum.b, sum.steps());
        }
        let shown = (0..2 + rng.index(3)).map(|_| {
            let sum = self.sum(false, rng);
            let (e, r) = (sum.expression(), sum.result());
            match rng.index(3) {
                0 => format!("The calculator gets {e} and shows {r}. The answer is {r}."),
                1 => format!("{} {} {}: {e} gives {r}.", sum.a, sum.sign(), sum.b),
                _ => format!("The display of the calculator said {r}. So the answer is {r}."),
            }
        });
        shown.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_as_at_school() {
        let steps = |operation, a, b| Sum { operation, a, b }.steps();
        assert_eq!(
            steps(Operation::Plus, 47, 85),
            "7 + 5 = 12, write 2, carry 1: 2. 4 + 8 + 1 = 13, write 3, carry 1: 32. Write 1: 132. The answer is 132."
        );
        assert_eq!(
            steps(Operation::Minus, 103, 58),
            "13 - 8 = 5, write 5, carry 1: 5. 10 - 5 - 1 = 4, write 4, carry 1: 45. 1 - 0 - 1 = 0, write 0, carry 0: 045. The answer is 45."
        );
        assert_eq!(
            steps(Operation::Times, 47, 6),
            "7 * 6 = 42, write 2, carry 4: 2. 4 * 6 = 24, 24 + 4 = 28, write 8, carry 2: 82. Write 2: 282. The answer is 282."
        );
    }
}
