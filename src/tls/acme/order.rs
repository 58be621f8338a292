//! One order, from its beginning to the certificate; and the account that it is made with.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, CertificateIdentifier, ChallengeHandle, ChallengeType,
    Error, ExternalAccountKey, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use tracing::warn;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::challenges::{Challenges, Offered};
use super::client::Client;
use super::error::AcmeError;
use super::files::{self, Files};
use super::hook::{self, Verb};
use super::schedule::Validity;
use crate::config::{AcmeChallenge, AcmeConfig, ExternalAccount};
use crate::peek::ServerName;

/// How it is asked what has come of an order: authorities look from several places, and take some seconds.
const POLL: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.5)
    .timeout(Duration::from_secs(180));
/// Keys of accounts elsewhere are given in both alphabets, with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The account as it is kept.
#[derive(Deserialize, Serialize)]
pub(super) struct Kept {
    contacts: Vec<Box<str>>,
    credentials: AccountCredentials,
}

/// What an order came to.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) chain: String,
    pub(super) key: String,
    pub(super) validity: Validity,
    pub(super) id: Option<CertificateIdentifier<'static>>,
}

/// The account, which is made if there is none; kept as it is given.
///
/// # Errors
/// When there is none and none can be made.
pub(super) async fn account(
    config: &AcmeConfig,
    files: &Files,
    client: &Client,
) -> Result<Vec<u8>, AcmeError> {
    let own = files.clone();
    let kept = blocking(move || own.prepare().and_then(|()| own.account())).await?;
    if let Some(bytes) = kept {
        if let Ok(kept) = serde_json::from_slice::<Kept>(&bytes) {
            return Box::pin(with_contacts(config, files, client, (kept, bytes))).await;
        }
        warn!("the file of the account cannot be read, another account is made");
        files.forget_account();
    }
    let contacts: Vec<&str> = config.contacts.iter().map(|contact| &**contact).collect();
    let new = NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
    let external = config.external_account.as_ref().map(external_key).transpose()?;
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let made = Box::pin(builder.create(&new, config.directory.as_ref().to_owned(), external.as_ref())).await;
    let (_, credentials) = made?;
    keep(Kept { contacts: config.contacts.clone(), credentials }, files).await
}

/// Tells the authority of other contacts, if they are.
async fn with_contacts(
    config: &AcmeConfig,
    files: &Files,
    client: &Client,
    (kept, bytes): (Kept, Vec<u8>),
) -> Result<Vec<u8>, AcmeError> {
    if kept.contacts == config.contacts {
        return Ok(bytes);
    }
    let contacts: Vec<&str> = config.contacts.iter().map(|contact| &**contact).collect();
    open(&bytes, client).await?.update_contacts(&contacts).await?;
    keep(Kept { contacts: config.contacts.clone(), ..kept }, files).await
}

async fn keep(kept: Kept, files: &Files) -> Result<Vec<u8>, AcmeError> {
    let bytes = serde_json::to_vec_pretty(&kept).map_err(|error| AcmeError::Server(Error::Json(error)))?;
    let files = files.clone();
    blocking(move || files.keep_account(&bytes).map(|()| bytes)).await
}

/// Does what waits for a disk elsewhere: this runtime has one thread.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AcmeError> + Send + 'static,
) -> Result<T, AcmeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(AcmeError::Storage(std::path::PathBuf::new(), error.into())))
}

/// The account that is kept as these bytes; the authority is asked for its directory.
///
/// # Errors
/// When the authority cannot be asked.
pub(super) async fn open(kept: &[u8], client: &Client) -> Result<Account, AcmeError> {
    let kept: Kept = serde_json::from_slice(kept).map_err(|error| AcmeError::Server(Error::Json(error)))?;
    let builder = Account::builder_with_http(Box::new(client.clone()));
    Ok(Box::pin(builder.from_credentials(kept.credentials)).await?)
}

fn external_key(account: &ExternalAccount) -> Result<ExternalAccountKey, AcmeError> {
    let secret = account.hmac.read().map_err(AcmeError::Secret)?;
    let plain = |byte: &u8| match byte {
        b'+' => b'-',
        b'/' => b'_',
        byte => *byte,
    };
    let text: Vec<u8> = secret.iter().map(plain).collect();
    let bad = |error| AcmeError::Secret(std::io::Error::new(std::io::ErrorKind::InvalidData, error));
    let key = BASE64.decode(text).map_err(bad)?;
    Ok(ExternalAccountKey::new(account.kid.as_ref().to_owned(), &key))
}

/// Orders a certificate for `name`, in place of the one that is called `replaces`. Cancel safe: what was offered goes with it, but
/// for records that a command has published.
///
/// # Errors
/// When nothing comes of it.
pub(super) async fn order(
    account: &Account,
    name: &str,
    replaces: Option<CertificateIdentifier<'static>>,
    challenge: &AcmeChallenge,
    challenges: &Arc<Challenges>,
) -> Result<Issued, AcmeError> {
    let identifiers = [Identifier::Dns(name.to_owned())];
    let new = NewOrder::new(&identifiers);
    let begun = match replaces {
        Some(replaces) => match account.new_order(&NewOrder::new(&identifiers).replaces(replaces)).await {
            // By an order of another process, or the authority does not know it any more: it is a courtesy alone.
            Err(Error::Api(_) | Error::Unsupported(_)) => account.new_order(&new).await,
            begun => begun,
        },
        None => account.new_order(&new).await,
    };
    let mut order = begun?;
    if order.state().status != OrderStatus::Ready {
        let mut shown = Shown { offered: Vec::new(), records: Vec::new(), challenge };
        let ready = show(&mut order, challenge, challenges, &mut shown).await;
        shown.end().await;
        ready?;
    }
    certificate(&mut order, name).await
}

/// What is shown to the authority.
struct Shown<'a> {
    offered: Vec<Offered>,
    records: Vec<(String, String)>,
    challenge: &'a AcmeChallenge,
}

impl Shown<'_> {
    async fn end(self) {
        let AcmeChallenge::Dns01(hook) = self.challenge else { return };
        for (name, value) in &self.records {
            if let Err(error) = hook::call(hook, Verb::Clear, name, value).await {
                warn!(record = %name, %error, "a record that showed that a name is ours may still be there");
            }
        }
    }
}

/// Shows the authority that the names of the order are ours, and waits until it has looked.
async fn show(
    order: &mut Order,
    challenge: &AcmeChallenge,
    challenges: &Arc<Challenges>,
    shown: &mut Shown<'_>,
) -> Result<(), AcmeError> {
    let kind = match challenge {
        AcmeChallenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
        AcmeChallenge::Http01 => ChallengeType::Http01,
        AcmeChallenge::Dns01(_) => ChallengeType::Dns01,
    };
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        let mut handle =
            authorization.challenge(kind.clone()).ok_or(AcmeError::NoChallenge(challenge.as_str()))?;
        offer(&handle, challenge, challenges, shown).await?;
        handle.set_ready().await?;
    }
    let polled = order.poll_ready(&POLL).await;
    match polled {
        Ok(OrderStatus::Ready) => Ok(()),
        Ok(_) => Err(seen(order).await.unwrap_or(AcmeError::Wrong("the order is not valid"))),
        Err(error @ Error::Api(_)) => Err(seen(order).await.unwrap_or_else(|| error.into())),
        Err(error) => Err(error.into()),
    }
}

/// Prepares what the authority is to see.
async fn offer(
    handle: &ChallengeHandle<'_>,
    challenge: &AcmeChallenge,
    challenges: &Arc<Challenges>,
    shown: &mut Shown<'_>,
) -> Result<(), AcmeError> {
    let authorization = handle.key_authorization();
    let Identifier::Dns(name) = handle.identifier().identifier else {
        return Err(AcmeError::Wrong("the authority asks about no name"));
    };
    match challenge {
        AcmeChallenge::TlsAlpn01 => {
            let name = ServerName::parse(name.as_bytes());
            let name = name.map_err(|_| AcmeError::Wrong("the authority asks about no name"))?;
            shown.offered.push(challenges.offer_tls(&name, authorization.digest().as_ref())?);
        }
        AcmeChallenge::Http01 => {
            shown.offered.push(challenges.offer_http(&handle.token, authorization.as_str())?);
        }
        AcmeChallenge::Dns01(command) => {
            let (record, value) = (format!("_acme-challenge.{name}"), authorization.dns_value());
            // Also when it fails half-way, there may be something to take back.
            shown.records.push((record.clone(), value.clone()));
            hook::call(command, Verb::Set, &record, &value).await.map_err(AcmeError::Hook)?;
        }
    }
    Ok(())
}

/// What the authority saw in place of what it was to see.
async fn seen(order: &mut Order) -> Option<AcmeError> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.ok()?;
        let state = authorization.refresh().await.ok()?;
        let problem = state.challenges.iter().find_map(|challenge| challenge.error.clone());
        if let Some(problem) = problem {
            return Some(AcmeError::NotShown(Box::new(problem)));
        }
    }
    None
}

/// Gets the certificate of an order that is ready, for a new key.
async fn certificate(order: &mut Order, name: &str) -> Result<Issued, AcmeError> {
    let mut params = CertificateParams::new([name.to_owned()]).map_err(AcmeError::Key)?;
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(AcmeError::Key)?;
    let request = params.serialize_request(&key).map_err(AcmeError::Key)?;
    order.finalize_csr(request.der()).await?;
    let chain = order.poll_certificate(&POLL).await?;
    check(chain, &key, name, SystemTime::now())
}

/// Whether the certificate is the one that was ordered.
fn check(chain: String, key: &KeyPair, name: &str, now: SystemTime) -> Result<Issued, AcmeError> {
    let leaf = CertificateDer::from_pem_slice(chain.as_bytes());
    let leaf = leaf.map_err(|_| AcmeError::Wrong("it is not in PEM"))?;
    let (_, parsed) = X509Certificate::from_der(&leaf).map_err(|_| AcmeError::Wrong("it cannot be read"))?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(AcmeError::Wrong("it has another key"));
    }
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    if !names
        .iter()
        .any(|found| matches!(found, GeneralName::DNSName(found) if found.eq_ignore_ascii_case(name)))
    {
        return Err(AcmeError::Wrong("it is for another name"));
    }
    let (validity, id) = files::read(&leaf).ok_or(AcmeError::Wrong("its time cannot be read"))?;
    if validity.not_after <= now {
        return Err(AcmeError::Wrong("its time is over; is the clock right?"));
    }
    Ok(Issued { key: key.serialize_pem(), chain, validity, id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SecretSource;

    #[test]
    fn keys_of_accounts_elsewhere_come_in_both_alphabets() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hmac");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            external_key(&ExternalAccount { kid: "a".into(), hmac: SecretSource::File(file.clone()) })
        };
        for text in ["-_8", "-_8=", "+/8", "+/8=\n"] {
            assert!(read(text).is_ok(), "{text}");
        }
        assert!(matches!(read("a b"), Err(AcmeError::Secret(_))));
        assert!(matches!(read("\n"), Err(AcmeError::Secret(_))), "empty");
    }

    #[test]
    fn what_was_not_ordered_is_not_taken() {
        let key = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let (own, other) = (key(), key());
        let params = CertificateParams::new(["a.test".to_owned()]).unwrap();
        let chain = params.self_signed(&own).unwrap().pem();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let why = |result: Result<Issued, AcmeError>| result.map(drop).map_err(|error| error.to_string());
        assert_eq!(why(check(chain.clone(), &own, "A.test", now)), Ok(()));
        for (key, name, now, expected) in [
            (&other, "a.test", now, "it has another key"),
            (&own, "b.test", now, "it is for another name"),
            (
                &own,
                "a.test",
                now + Duration::from_secs(100_000_000_000),
                "its time is over; is the clock right?",
            ),
        ] {
            let told = why(check(chain.clone(), key, name, now)).unwrap_err();
            assert!(told.ends_with(expected), "{told}");
        }
        assert!(check("none".to_owned(), &own, "a.test", now).is_err());
    }
}
