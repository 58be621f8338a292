//! The way of a connection from process to process, told in a TLV of our own: by it a loop is known that comes back through
//! other addresses, other names and other proxies of this kind.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::ProxyHeaderError;

/// A process among all that a connection may come through. A successor is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceId(pub(super) [u8; ID]);

/// The processes that a connection has come through, the last one last; no more than [`Hops::MAX`] are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hops(pub(super) Box<[InstanceId]>);

/// Length of an id.
const ID: usize = 8;
/// What the value begins with: others may use the same type for something else (§2.2.8, `PP2_TYPE_MIN_CUSTOM`).
const TAG: &[u8] = b"portcullis";

/// In hexadecimal.
impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl InstanceId {
    /// One that no other process has, as far as 64 random bits go: those that the kernel gives to the keys of hash tables.
    pub fn random() -> Self {
        Self(RandomState::new().build_hasher().finish().to_be_bytes())
    }
}

impl Hops {
    /// A connection that came through so many goes round, whoever they were.
    pub const MAX: usize = 8;

    /// Whether it comes back to `own`, or has come too far.
    pub fn is_loop(&self, own: InstanceId) -> bool {
        self.0.len() >= Self::MAX || self.0.contains(&own)
    }

    /// Those that the `value` of a TLV tells of; `None` when it is somebody else's.
    pub(super) fn read(value: &[u8]) -> Result<Option<Self>, ProxyHeaderError> {
        let Some(ids) = value.strip_prefix(TAG) else { return Ok(None) };
        let (ids, rest) = ids.as_chunks();
        if !rest.is_empty() {
            return Err(ProxyHeaderError::Tlvs);
        }
        Ok(Some(Self(ids.iter().take(Self::MAX).copied().map(InstanceId).collect())))
    }

    /// The value of a TLV that tells the next process of them and of `own`.
    pub(super) fn write(&self, own: InstanceId) -> Vec<u8> {
        let ids = self.0.iter().chain([&own]).flat_map(|id| id.0);
        TAG.iter().copied().chain(ids).collect()
    }
}
