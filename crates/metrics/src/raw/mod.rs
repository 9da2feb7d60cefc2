//! The only unsafe code of the crate. Two things need it: a pointer that is set once ([`OncePtr`](once_ptr::OncePtr)), and the
//! way from an instrument to the memory that the running thread has for it ([`Handle`]).
//!
//! Invariants:
//!
//! - **R1** A thread's table has an entry `(id, cell)` only if `cell` is the address of a `C` in an `Arc` that the
//!   `Shards<C, _>` with that id holds in its list; ids are given once and to one `Shards` only.
//! - **R2** The `Shards` gives up such an `Arc` in two cases only: the thread itself retires the cell, after it has taken all
//!   entries out of its table; or the `Shards` is dropped.
//! - **R3** Whoever looks up an id borrows a [`Handle`] that holds an `Arc` of the `Shards` with that id, or that id is in no
//!   table at all, since a handle gets its `Shards` before it records or is cloned.
//!
//! From R1 to R3: a cell that a lookup finds is of the handle's type `C`, and lives at least as long as the borrow.

pub(crate) mod once_ptr;

mod handle;
mod table;

pub(crate) use handle::{Handle, Mine};
