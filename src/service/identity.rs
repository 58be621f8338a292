//! The user that the process is, once its ports are bound.

use std::io;

use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
use tracing::{info, warn};

use crate::config::{Account, Identity};

/// Becomes the user that the configuration names, for good and with all threads: these calls of the C library change
/// them all, unlike the kernel's own.
///
/// # Errors
/// When the kernel refuses.
pub fn take_on(identity: &Identity) -> io::Result<()> {
    let root = geteuid().is_root();
    match identity {
        Identity::Unsaid if root => {
            warn!("runs as root: `user` names whom to become once the ports are bound")
        }
        Identity::Unsaid | Identity::Kept => {}
        Identity::Account(account) if root => return become_account(account),
        Identity::Account(Account { name, uid, .. }) if geteuid().as_raw() != *uid => {
            warn!(user = %name, "`user` is ignored: only root can become another user");
        }
        Identity::Account(_) => {}
    }
    Ok(())
}

fn become_account(Account { name, uid, gid }: &Account) -> io::Result<()> {
    // The groups first: afterwards there is no right to change them.
    setgroups(&[])?;
    setgid(Gid::from_raw(*gid))?;
    setuid(Uid::from_raw(*uid))?;
    if *uid != 0 && setuid(Uid::from_raw(0)).is_ok() {
        return Err(io::Error::other("root could be become again"));
    }
    info!(user = %name, uid, gid, "became another user");
    Ok(())
}
