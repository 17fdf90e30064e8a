//! REST, encrypted: the operator's certificate for clients, and one of the cluster's own authority for other schedulers, which
//! ask for it by the name that all schedulers have.

use super::Authority;
use crate::config::SchedulerConfig;
use anyhow::{Context, Result, ensure};
use capstan_common::identity;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{path::Path, sync::Arc};

/// The certificate for each name.
#[derive(Debug)]
struct ByName {
    /// For other schedulers.
    ours: Arc<CertifiedKey>,
    /// For everybody else.
    shown: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let ours = hello.server_name() == Some(identity::SCHEDULER);
        Some(if ours { self.ours.clone() } else { self.shown.clone() })
    }
}

/// How REST is served.
pub fn server(authority: &Authority, config: &SchedulerConfig) -> Result<ServerConfig> {
    let ours = Arc::new(authority.scheduler(names(config))?);
    let shown = match config.rest_certificate() {
        Some((certificate, key)) => Arc::new(given(certificate, key)?),
        None => ours.clone(),
    };
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
    Ok(config.with_cert_resolver(Arc::new(ByName { ours, shown })))
}

/// How other schedulers are believed to be some: by the cluster's authority alone.
pub fn client(authority: Option<&Authority>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if let Some(authority) = authority {
        roots.add(authority.certificate.clone())?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(config.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth())
}

/// Names and addresses by which clients may reach this scheduler.
pub(super) fn names(config: &SchedulerConfig) -> Vec<String> {
    let host = |address: &String| {
        let uri = address.parse::<hyper::Uri>().ok()?;
        Some(uri.host()?.trim_matches(['[', ']']).to_owned())
    };
    let advertised = [&config.advertise, &config.keda_advertise].into_iter().filter_map(host);
    let listens = Some(config.listen.ip()).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string());
    let local = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut names = vec![identity::SCHEDULER.to_owned()];
    names.extend(local.into_iter().chain(advertised).chain(listens).chain(config.tls_names.iter().cloned()));
    // A name that no certificate can carry is no name that a client can ask for.
    if config.name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')) {
        names.push(config.name.clone());
    }
    names.sort();
    names.dedup();
    names
}

/// The operator's certificate, with all that leads to its authority.
fn given(certificate: &Path, key: &Path) -> Result<CertifiedKey> {
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.with_context(|| format!("rest_cert_file {} cannot be read as PEM", certificate.display()))?;
    ensure!(!chain.is_empty(), "rest_cert_file {} holds no certificate", certificate.display());
    let read = PrivateKeyDer::from_pem_file(key);
    let read = read.with_context(|| format!("rest_key_file {} cannot be read as PEM", key.display()))?;
    let made = CertifiedKey::from_der(chain, read, &ring::default_provider());
    made.with_context(|| format!("{} and {} do not belong together", certificate.display(), key.display()))
}
