//! KEDA's door, encrypted: a certificate of the cluster's own authority is shown, and whoever asks may have to show one too.

use super::{Authority, rest::names};
use crate::config::SchedulerConfig;
use anyhow::{Context, Result, ensure};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use std::{path::Path, sync::Arc};

/// How the door is served.
///
/// # Errors
/// The authorities of those who may ask cannot be read.
pub fn server(authority: &Authority, config: &SchedulerConfig) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(ring::default_provider());
    let file = &config.keda_client_ca_file;
    let clients: Arc<dyn ClientCertVerifier> = if file.as_os_str().is_empty() {
        Arc::new(NoClientAuth)
    } else {
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(file)?), provider.clone()).build()?
    };
    let mut made = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(authority.scheduler(names(config))?)));
    made.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(made))
}

/// The operator's authorities.
fn roots(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.with_context(|| format!("keda_client_ca_file {} cannot be read as PEM", file.display()))?;
    ensure!(!read.is_empty(), "keda_client_ca_file {} holds no certificate", file.display());
    for certificate in read {
        roots.add(certificate).with_context(|| format!("{} holds what is no authority", file.display()))?;
    }
    Ok(roots)
}
