//! The cluster's own authority: it signs schedulers' and workers' certificates, and checks who dials in.

pub mod keda;
pub mod rest;

use crate::{
    clock,
    global::Globals,
    store::{
        Change, StoreError, layout,
        stored::{self, stored},
    },
    strangers::Guarded,
};
use anyhow::{Context, Result, bail};
use capstan_common::{
    identity::{self, JoinToken},
    time::Time,
};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::transport::server::Connected;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a join token opens the door.
const JOIN_MS: u64 = 600_000;
/// How long a scheduler's certificate is good; it makes a new one with every start.
const SCHEDULER_DAYS: i64 = 365;
const AUTHORITY_DAYS: i64 = 3650;

/// The authority, as it is stored.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredAuthority {
    certificate: String,
    key: String,
}

/// A join token, as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Join {
    hash: [u8; 32],
    until: Time,
}

stored! {
    StoredAuthority, "the cluster's authority", vec![StoredAuthority { certificate: "c".into(), key: "k".into() }];
    Join, "a join token", vec![Join { hash: [9; 32], until: Time(5) }];
}

/// Signs and checks certificates of one cluster.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    worker_s: u32,
}

fn validity(params: &mut CertificateParams, from_now_s: i64) {
    let now = chrono::Utc::now();
    let at = |seconds: i64| {
        let time = now + chrono::Duration::seconds(seconds);
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(time.timestamp().max(0) as u64)
    };
    // Clocks differ by some minutes.
    params.not_before = at(-300).into();
    params.not_after = at(from_now_s).into();
}

impl Authority {
    /// The cluster's authority, made if there is none.
    pub async fn settle(globals: &Globals, worker_s: u32) -> Result<Self> {
        if globals.get(layout::AUTHORITY).await?.is_none() {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "Capstan cluster authority");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            validity(&mut params, AUTHORITY_DAYS * 86_400);
            let made = StoredAuthority { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
            // Another scheduler may be faster: its authority holds.
            globals.create(layout::AUTHORITY, stored::encode(&made)).await?;
        }
        let value = globals.get(layout::AUTHORITY).await?.context("the cluster's authority is gone")?;
        let stored: StoredAuthority = stored::decode(&value)?;
        let issuer = Issuer::from_ca_cert_pem(&stored.certificate, KeyPair::from_pem(&stored.key)?)?;
        let certificate = CertificateDer::from_pem_slice(stored.certificate.as_bytes())?;
        Ok(Self { issuer, certificate, pem: stored.certificate, worker_s })
    }

    /// How this scheduler shows itself, and whom it lets in: workers with a certificate of ours, and those that have none yet, who
    /// can do nothing but enrol.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let provider = Arc::new(ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let clients = clients.allow_unauthenticated().build()?;
        let ours = self.scheduler(vec![identity::SCHEDULER.to_owned()])?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(ours)));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// A certificate of this scheduler for these names, with its key.
    fn scheduler(&self, names: Vec<String>) -> Result<CertifiedKey> {
        let (certificate, key) = self.issue(names, ExtendedKeyUsagePurpose::ServerAuth)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(CertifiedKey::from_der(chain, key, &ring::default_provider())?)
    }

    /// A certificate for these names and this use, with its key.
    fn issue(&self, names: Vec<String>, usage: ExtendedKeyUsagePurpose) -> Result<(Certificate, KeyPair)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![usage];
        validity(&mut params, SCHEDULER_DAYS * 86_400);
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }

    /// Its certificate, for clients that are to believe it.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// How long a worker's certificate is good, in seconds.
    pub fn worker_s(&self) -> u64 {
        u64::from(self.worker_s)
    }

    /// A token that lets one worker in, within ten minutes.
    pub async fn invite(&self, globals: &Globals) -> Result<String, StoreError> {
        let random = || uuid::Uuid::new_v4().simple().to_string();
        let (id, secret) = (random()[..12].to_owned(), random());
        let claim = format!("{id}_{secret}");
        let join = Join { hash: Sha256::digest(claim.as_bytes()).into(), until: clock::now().plus_ms(JOIN_MS) };
        globals.write(vec![Change::Put(layout::join(&id), stored::encode(&join))]).await?;
        Ok(JoinToken { claim, authority: Sha256::digest(&self.certificate).into() }.write())
    }

    /// A certificate for a worker, and the authority's. It opens the link of this worker and no other.
    pub fn sign(&self, worker: &str, request: &str) -> Result<(String, String)> {
        let mut request = CertificateSigningRequestParams::from_pem(request).context("the request cannot be read")?;
        let mut params = CertificateParams::new(vec![identity::worker(worker)])?;
        params.distinguished_name.push(DnType::CommonName, worker);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        validity(&mut params, i64::from(self.worker_s));
        // What the request asks to be called counts for nothing.
        request.params = params;
        Ok((request.signed_by(&self.issuer)?.pem(), self.pem.clone()))
    }
}

/// Whether a join token opens the door; it does so once.
pub async fn admit(globals: &Globals, claim: &str) -> Result<()> {
    let Some((id, _)) = claim.split_once('_') else { bail!("the join token cannot be read") };
    let key = layout::join(id);
    let unknown =
        "the join token is not known: it was used, or it is older than ten minutes; make another with `capstan invite`";
    let value = globals.get(&key).await?.context(unknown)?;
    let join: Join = stored::decode(&value)?;
    let hash: [u8; 32] = Sha256::digest(claim.as_bytes()).into();
    if join.hash != hash || join.until < clock::now() {
        bail!(unknown);
    }
    if !globals.take(&key, value).await? {
        bail!(unknown);
    }
    Ok(())
}

/// Removes join tokens that nobody used in time.
///
/// # Errors
/// The store's.
pub async fn forget_old_invitations(globals: &Globals) -> Result<(), StoreError> {
    let now = clock::now();
    let old = |value: &[u8]| stored::decode::<Join>(value).map_or(true, |join| join.until < now);
    let all = globals.pairs(layout::JOINS).await?;
    let changes: Vec<_> = all.into_iter().filter(|(_, value)| old(value)).map(|(key, _)| Change::Delete(key)).collect();
    if changes.is_empty() { Ok(()) } else { globals.write(changes).await }
}

/// Whether a certificate is a worker's.
pub fn is_of(certificate: &CertificateDer<'_>, worker: &str) -> bool {
    is_called(certificate, &identity::worker(worker))
}

fn is_called(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let name = ServerName::try_from(name);
    let entity = webpki::EndEntityCert::try_from(certificate);
    matches!((entity, name), (Ok(entity), Ok(name)) if entity.verify_is_valid_for_subject_name(&name).is_ok())
}

/// Encrypted connections, each as soon as its handshake is done: a client that does not speak holds nobody up.
pub fn incoming(
    mut plain: ReceiverStream<std::io::Result<Guarded>>,
    config: Arc<ServerConfig>,
) -> ReceiverStream<std::io::Result<TlsStream<Guarded>>> {
    let (ready, connections) = mpsc::channel(64);
    let acceptor = TlsAcceptor::from(config);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = plain.next() => accepted,
                () = ready.closed() => return,
            };
            let Some(Ok(stream)) = accepted else { return };
            let from = stream.connect_info().from;
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                    Ok(Err(error)) => tracing::warn!(%from, %error, "a connection was refused"),
                    Err(_) => tracing::warn!(%from, "a connection did not shake hands in time"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}
