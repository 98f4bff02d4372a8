//! The program behind `make bench`; see the library.
#![forbid(unsafe_code)]

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    postern_bench::run(&postern_bench::Args::parse())
}
