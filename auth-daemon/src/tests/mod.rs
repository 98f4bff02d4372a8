//! Dialogues with a daemon in this process, over real sockets.

mod chains;
mod client;
mod faults;
mod fronts;
mod guards;
pub(crate) mod harness;
mod master;
mod mux;
