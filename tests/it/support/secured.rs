//! Real servers that begin TLS within their protocol or speak it from the first byte, each with a certificate of its own for one name.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};

use super::servers::{self, NOBODY, Server};

/// The file with a server's certificate, which is its own authority, in its folder.
pub(crate) const CERTIFICATE: &str = "certificate.pem";
/// The file with the key to it.
pub(crate) const KEY: &str = "key.pem";

/// Writes a certificate for `name` and its key into `folder`, for the server there to read.
pub(crate) fn certify(folder: &Path, name: &str) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(folder.join(CERTIFICATE), certificate.pem()).unwrap();
    let file = folder.join(KEY);
    std::fs::write(&file, key.serialize_pem()).unwrap();
    // Servers refuse keys that others may read.
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    for file in [folder.join(CERTIFICATE), file] {
        if rustix::process::geteuid().is_root() {
            chown(file, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
}

/// Where the certificate of `server` is.
pub(crate) fn certificate(server: &Server) -> PathBuf {
    server.folder().join(CERTIFICATE)
}

/// A PostgreSQL server with TLS for `name` and the database `name`, which trusts everybody.
pub(crate) fn postgres(name: &str) -> Server {
    servers::Postgres::with(|folder| {
        certify(folder, name);
        let file = |file: &str| folder.join(file).display().to_string();
        vec![
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", file(CERTIFICATE)),
            format!("ssl_key_file={}", file(KEY)),
            format!("cluster_name={name}"),
        ]
    })
}
