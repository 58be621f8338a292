//! Which of several variants a request goes to.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::IpAddr;

use http::{HeaderMap, HeaderValue};
use siphasher::sip::SipHasher13;

use super::site::Destination;
use super::template::cookie;
use crate::config::SplitKey;

/// How long a client stays with its variant, in seconds: 30 days.
const MAX_AGE: u32 = 30 * 24 * 3600;

/// The variant for a request, and the cookie that its client is to have.
pub(super) fn choose<'a>(
    variants: &'a [Destination],
    key: &SplitKey,
    headers: &HeaderMap,
    client: IpAddr,
    secure: bool,
) -> Option<(&'a Destination, Option<HeaderValue>)> {
    let [first, rest @ ..] = variants else { return None };
    if rest.is_empty() {
        return Some((first, None));
    }
    match key {
        SplitKey::Source => Some((by(variants, hash(client))?, None)),
        SplitKey::Header(name) => match headers.get(name) {
            Some(value) => Some((by(variants, hash(value.as_bytes()))?, None)),
            None => Some((by(variants, hash(client))?, None)),
        },
        SplitKey::Cookie(name) => {
            let known = cookie(headers, name).and_then(|value| {
                variants.iter().find(|variant| *variant.name == *value && variant.weight > 0)
            });
            if let Some(variant) = known {
                return Some((variant, None));
            }
            let variant = by(variants, RandomState::new().build_hasher().finish())?;
            let secure = if secure { "; Secure" } else { "" };
            let text =
                format!("{name}={}; Path=/; Max-Age={MAX_AGE}; HttpOnly; SameSite=Lax{secure}", variant.name);
            Some((variant, HeaderValue::try_from(text).ok()))
        }
    }
}

/// The same in every process, so that several proxies send a client to the same variant.
fn hash(key: impl Hash) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    key.hash(&mut hasher);
    hasher.finish()
}

/// The variant at this point of all their shares.
fn by(variants: &[Destination], point: u64) -> Option<&Destination> {
    let total = variants.iter().map(|variant| u64::from(variant.weight)).sum::<u64>();
    let mut left = point.checked_rem(total)?;
    variants.iter().find(|variant| {
        let weight = u64::from(variant.weight);
        let is_it = left < weight;
        left = left.saturating_sub(weight);
        is_it
    })
}
