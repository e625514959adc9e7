//! What the targets run: the files that `tests/corpus.rs` compiles as well.

#[path = "../../tests/fuzz/mod.rs"]
pub mod fuzz;
