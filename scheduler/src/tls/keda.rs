//! KEDA's door, encrypted: a certificate of the cluster's own authority is shown, and whoever asks may have to show one too.
//! Other schedulers, which pass questions on, show one of the authority's.

use super::{Authority, is_called, rest::names};
use crate::config::SchedulerConfig;
use anyhow::{Context, Result, ensure};
use capstan_common::identity;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::ring,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{
        NoClientAuth, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::SingleCertAndKey,
};
use std::{path::Path, sync::Arc};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

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
        let mut ours = RootCertStore::empty();
        ours.add(authority.certificate.clone())?;
        let verifier = |roots| WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        Arc::new(MayAsk { theirs: verifier(roots(file)?)?, ours: verifier(ours)? })
    };
    let mut made = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(authority.scheduler(names(config))?)));
    made.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(made))
}

/// Lets in whoever the operator's authorities know, and other schedulers; not everybody whom the cluster's authority knows, as
/// that signs workers' certificates too.
#[derive(Debug)]
struct MayAsk {
    theirs: Arc<dyn ClientCertVerifier>,
    ours: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for MayAsk {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: a client that has one certificate shows it, whoever signed that.
        &[]
    }

    fn verify_client_cert(
        &self,
        entity: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let refused = match self.theirs.verify_client_cert(entity, between, now) {
            Ok(verified) => return Ok(verified),
            Err(refused) => refused,
        };
        let verified = self.ours.verify_client_cert(entity, between, now)?;
        if is_called(entity, identity::SCHEDULER) { Ok(verified) } else { Err(refused) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        entity: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.theirs.verify_tls12_signature(message, entity, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        entity: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.theirs.verify_tls13_signature(message, entity, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.theirs.supported_verify_schemes()
    }
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

/// How another scheduler's door is asked.
///
/// # Errors
/// No certificate can be made.
pub fn client(authority: &Authority) -> Result<ClientTlsConfig> {
    let (certificate, key) = authority.issue(vec![identity::SCHEDULER.into()], ExtendedKeyUsagePurpose::ClientAuth)?;
    Ok(ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority.pem()))
        .identity(Identity::from_pem(certificate.pem(), key.serialize_pem()))
        .domain_name(identity::SCHEDULER))
}
