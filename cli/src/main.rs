//! `capstan`: one binary for people.

fn main() -> std::process::ExitCode {
    capstan::main()
}
