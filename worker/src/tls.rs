//! A worker's certificate: asked for with a join token, renewed at half its life, shown to every scheduler.

use anyhow::{Context, Result, bail, ensure};
use capstan_common::{
    identity::{self, JoinToken},
    wire::link,
};
use futures_util::future::BoxFuture;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Channel;

/// What a worker shows and whom it trusts, as it lies in its folder.
#[derive(Clone, Serialize, Deserialize)]
struct Identity {
    certificate: String,
    key: String,
    authority: String,
    /// When it was signed, and until when it is good, in milliseconds since 1970.
    since_ms: u64,
    until_ms: u64,
}

/// Encrypts links and shows who dials.
pub struct Tls {
    file: PathBuf,
    worker: String,
    identity: RwLock<Identity>,
    config: RwLock<Arc<ClientConfig>>,
}

/// A door to enrol at, by a connection of this configuration.
pub type Open = Arc<dyn Fn(Arc<ClientConfig>) -> BoxFuture<'static, Result<Channel>> + Send + Sync>;

impl Tls {
    /// What lies in the folder, or what a join token gets at the door.
    pub async fn settle(folder: &Path, worker: &str, token: &str, open: &Open) -> Result<Self> {
        let file = folder.join("identity.json");
        let identity = match std::fs::read(&file) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{} cannot be read", file.display()))?
            }
            Err(_) => {
                ensure!(
                    !token.is_empty(),
                    "the worker has no certificate yet: make a join token with `capstan invite`, and start it with worker.join=TOKEN"
                );
                let token = JoinToken::read(token)
                    .context("worker.join is not a join token: it must look like join_ID_SECRET_AUTHORITY")?;
                let config = trusting(Trust::Pinned(token.authority), None)?;
                let identity = ask(open(config).await?, worker, &token.claim).await?;
                let shown: [u8; 32] =
                    Sha256::digest(CertificateDer::from_pem_slice(identity.authority.as_bytes())?).into();
                ensure!(shown == token.authority, "the scheduler has another authority than the join token says");
                keep(&file, &identity)?;
                identity
            }
        };
        if identity.until_ms < now_ms() {
            bail!("{}", expired(&file));
        }
        let config = RwLock::new(showing(&identity)?);
        Ok(Self { file, worker: worker.into(), identity: RwLock::new(identity), config })
    }

    /// Encrypts a connection to a scheduler.
    pub async fn connect(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        handshake(config, stream).await
    }

    /// When the certificate should be renewed.
    fn due_in(&self) -> Duration {
        let identity = self.identity.read().unwrap_or_else(PoisonError::into_inner);
        let half = identity.since_ms + (identity.until_ms - identity.since_ms) / 2;
        Duration::from_millis(half.saturating_sub(now_ms()))
    }

    /// Renews the certificate at half its life, again and again.
    pub async fn keep_fresh(self: Arc<Self>, open: Open) {
        loop {
            tokio::time::sleep(self.due_in()).await;
            let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
            let renewed = async { ask(open(config).await?, &self.worker, "").await };
            match renewed.await.and_then(|identity| self.hold(identity)) {
                Ok(()) => tracing::info!("the worker's certificate was renewed"),
                Err(_) if self.is_expired() => {
                    tracing::error!("{}", expired(&self.file));
                    tokio::time::sleep(EXPIRED_AGAIN).await;
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the worker's certificate could not be renewed");
                    tokio::time::sleep(RENEW_AGAIN).await;
                }
            }
        }
    }

    fn is_expired(&self) -> bool {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).until_ms < now_ms()
    }

    fn hold(&self, identity: Identity) -> Result<()> {
        let config = showing(&identity)?;
        keep(&self.file, &identity)?;
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }
}

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The pause before a certificate that nobody takes any more is told of again.
const EXPIRED_AGAIN: Duration = Duration::from_secs(30);
/// The pause before renewing is tried again.
const RENEW_AGAIN: Duration = Duration::from_millis(500);

/// Encrypts a connection to a scheduler.
pub async fn handshake(config: Arc<ClientConfig>, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(identity::SCHEDULER).map_err(std::io::Error::other)?;
    let shaking = TlsConnector::from(config).connect(name, stream);
    tokio::time::timeout(HANDSHAKE, shaking).await.map_err(std::io::Error::other)?
}

fn now_ms() -> u64 {
    capstan_clock::now().0 / 1000
}

fn expired(file: &Path) -> String {
    format!(
        "the worker's certificate has expired ({}): remove it, make a join token with `capstan invite`, and start the worker with worker.join=TOKEN",
        file.display()
    )
}

/// Asks for a certificate, with a join token or with the certificate that the connection shows.
async fn ask(channel: Channel, worker: &str, token: &str) -> Result<Identity> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::new(vec![identity::worker(worker)])?.serialize_request(&key)?.pem()?;
    let since_ms = now_ms();
    let enrol = link::EnrolRequest { worker: worker.into(), token: token.into(), request };
    let enrolled = link::link_client::LinkClient::new(channel).enrol(enrol).await;
    let enrolled = enrolled.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
    Ok(Identity {
        certificate: enrolled.certificate,
        authority: enrolled.authority,
        key: key.serialize_pem(),
        since_ms,
        until_ms: since_ms + enrolled.good_for_s * 1000,
    })
}

/// Only the worker's own user may read its key.
fn keep(file: &Path, identity: &Identity) -> Result<()> {
    let new = file.with_extension("new");
    let mut options = OpenOptions::new();
    let mut writing = options.create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    writing.write_all(&serde_json::to_vec(identity)?)?;
    writing.sync_all()?;
    Ok(std::fs::rename(new, file)?)
}

fn showing(identity: &Identity) -> Result<Arc<ClientConfig>> {
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let authority = CertificateDer::from_pem_slice(identity.authority.as_bytes())?;
    trusting(Trust::Authority(authority), Some((certificate, key)))
}

/// Whom a worker believes to be a scheduler.
enum Trust {
    /// Whoever has a certificate of the authority with this fingerprint, and shows it.
    Pinned([u8; 32]),
    /// Whoever has one of this authority.
    Authority(CertificateDer<'static>),
}

fn trusting(
    trust: Trust,
    shown: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let trusted = match trust {
        Trust::Authority(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority)?;
            builder.with_root_certificates(roots)
        }
        Trust::Pinned(authority) => {
            let pinned = Arc::new(Pinned { authority, provider });
            builder.dangerous().with_custom_certificate_verifier(pinned)
        }
    };
    let mut config = match shown {
        Some((certificate, key)) => trusted.with_client_auth_cert(vec![certificate], key)?,
        None => trusted.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Believes the authority that a join token names, and nobody else.
#[derive(Debug)]
struct Pinned {
    authority: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let named = |shown: &&CertificateDer<'_>| <[u8; 32]>::from(Sha256::digest(shown)) == self.authority;
        let Some(authority) = intermediates.iter().find(named) else {
            return Err(Error::General("the scheduler is not of the cluster that the join token is for".into()));
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
