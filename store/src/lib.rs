//! Files that survive: atomic writes, content hashes, lineage, memory maps.
