//! `capstan-scheduler`: one half of a cluster.

fn main() -> std::process::ExitCode {
    capstan::scheduler()
}
