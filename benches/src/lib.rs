//! Every goal of the workspace against its rival, measured side by side; not published.
//!
//! The program `scoreboard` measures all goals and says which are met. The Criterion benches (`cargo bench`) run the same
//! cases for whoever works on one primitive. Method, and how to read the numbers: `README.md` beside this crate.
//!
//! - [`cases`]: what is measured, one module for each crate, ours beside the rivals.
//! - [`goals`]: what we want to reach. The only place that states a goal.
//! - [`measure`]: rounds, calibration, threads that start together.
//! - [`stats`], [`board`]: medians with their intervals; rows, table, JSON.
#![forbid(unsafe_code)]

pub mod board;
pub mod cases;
pub mod goals;
pub mod measure;
pub mod stats;
