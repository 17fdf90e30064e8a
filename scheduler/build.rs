//! Generates KEDA's protocol from its description, without a compiler of its own, and finds out which commit is built.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/externalscaler.proto");
    // The commit, where there is one: `GET /v1/version` tells it.
    println!("cargo:rerun-if-env-changed=CAPSTAN_REVISION");
    println!("cargo:rerun-if-changed=../.git/logs/HEAD");
    let git = std::process::Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    if std::env::var_os("CAPSTAN_REVISION").is_none()
        && let Ok(git) = git
        && git.status.success()
    {
        println!("cargo:rustc-env=CAPSTAN_REVISION={}", String::from_utf8_lossy(&git.stdout).trim());
    }
    let descriptors = protox::compile(["proto/externalscaler.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
