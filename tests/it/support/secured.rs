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

/// A Redis server that speaks only TLS, for `name`.
pub(crate) fn redis(name: &str) -> Server {
    redis_with(name, |_| "--tls-auth-clients no".to_owned())
}

/// The same that wants a certificate of this authority of its clients.
pub(crate) fn redis_for(name: &str, authority: &Path) -> Server {
    redis_with(name, |folder| {
        let copy = folder.join("authority.pem");
        std::fs::copy(authority, &copy).unwrap();
        std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o644)).unwrap();
        format!("--tls-auth-clients yes --tls-ca-cert-file {}", copy.display())
    })
}

fn redis_with(name: &str, options: impl FnOnce(&Path) -> String) -> Server {
    let (dir, addr) = (servers::own_folder(), servers::address());
    certify(dir.path(), name);
    let at = dir.path().display().to_string();
    let words = format!(
        "redis-server --bind 127.0.0.1 --port 0 --tls-port {} {} --tls-cert-file {at}/{CERTIFICATE} \
         --tls-key-file {at}/{KEY} --dir {at} --appendonly no",
        addr.port(),
        options(dir.path())
    );
    Server::start(dir, split(&words), "redis-server", None, addr)
}

/// A Mosquitto broker for everybody that speaks only TLS, for `name`.
pub(crate) fn mosquitto(name: &str) -> Server {
    let (dir, addr) = (servers::own_folder(), servers::address());
    certify(dir.path(), name);
    let at = dir.path().display();
    let config = format!(
        "listener {} 127.0.0.1\ncertfile {at}/{CERTIFICATE}\nkeyfile {at}/{KEY}\nallow_anonymous true\n",
        addr.port()
    );
    std::fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
    let words = format!("mosquitto -c {at}/mosquitto.conf");
    Server::start(dir, split(&words), "mosquitto", None, addr)
}

/// An OpenSSH server that whoever runs the tests can log in to, with the key `id` in its folder.
pub(crate) fn sshd() -> Server {
    let (dir, addr) = (tempfile::tempdir().unwrap(), servers::address());
    let at = dir.path().display();
    for key in ["host", "id"] {
        let generate =
            ["env", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f"].map(str::to_owned).to_vec();
        servers::run(&[generate, vec![format!("{at}/{key}")]].concat(), "openssh-client");
    }
    if rustix::process::geteuid().is_root() {
        // Where it separates privileges; the package's service makes it otherwise.
        std::fs::create_dir_all("/run/sshd").unwrap();
    }
    let config = format!(
        "ListenAddress {addr}\nHostKey {at}/host\nPidFile none\nUsePAM no\nPasswordAuthentication no\n\
         PermitRootLogin prohibit-password\nAuthorizedKeysFile {at}/id.pub\nStrictModes no\n"
    );
    std::fs::write(dir.path().join("sshd_config"), config).unwrap();
    let words = format!("env /usr/sbin/sshd -f {at}/sshd_config -D -e");
    Server::start(dir, split(&words), "openssh-server", None, addr)
}

/// An OpenVPN server without a network behind it, for one client that has its certificate.
pub(crate) fn openvpn(name: &str) -> Server {
    let (dir, addr) = (servers::own_folder(), servers::address());
    certify(dir.path(), name);
    let at = dir.path().display();
    let words = format!(
        "openvpn --dev null --proto tcp-server --local 127.0.0.1 --lport {} --tls-server --dh none \
         --ca {at}/{CERTIFICATE} --cert {at}/{CERTIFICATE} --key {at}/{KEY}",
        addr.port()
    );
    Server::start(dir, split(&words), "openvpn", None, addr)
}

/// The SMTP server of Postfix, which begins TLS when it is asked to, for `name`.
pub(crate) fn postfix(name: &str) -> Server {
    servers::Postfix::with(|folder| {
        certify(folder, name);
        let at = folder.display();
        format!(
            "smtpd_tls_security_level = may\nsmtpd_tls_cert_file = {at}/{CERTIFICATE}\n\
             smtpd_tls_key_file = {at}/{KEY}\n"
        )
    })
}

/// A Dovecot for `name` in which `ann` has the password `secret`. Its address is that of the protocol.
pub(crate) fn dovecot(name: &str, protocol: &str) -> Server {
    let (dir, addr) = (tempfile::tempdir().unwrap(), servers::address());
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    certify(dir.path(), name);
    let at = dir.path().display();
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    let login = match protocol {
        "sieve" => "managesieve".to_owned(),
        other => other.to_owned(),
    };
    let config = format!(
        "base_dir={at}/run\nstate_dir={at}/run\nlog_path=/dev/stderr\nprotocols={protocol}\nssl=required\n\
         ssl_cert=<{at}/{CERTIFICATE}\nssl_key=<{at}/{KEY}\nauth_mechanisms=plain\n\
         passdb {{\n driver=static\n args=password=secret\n}}\n\
         userdb {{\n driver=static\n args=uid=nobody gid=nogroup home={at}/home/%u\n}}\n\
         mail_location=maildir:{at}/home/%u\nfirst_valid_uid=1\nfirst_valid_gid=1\n\
         service {login}-login {{\n inet_listener {protocol} {{\n address=127.0.0.1\n port={}\n }}\n\
         inet_listener {protocol}s {{\n port=0\n }}\n}}\n",
        addr.port()
    );
    std::fs::write(dir.path().join("dovecot.conf"), config).unwrap();
    let words = format!("env dovecot -F -c {at}/dovecot.conf");
    Server::start(dir, split(&words), "dovecot-imapd dovecot-pop3d dovecot-managesieved", None, addr)
}

/// An OpenLDAP server for `name` with the root `cn=admin,dc=test` and its password `secret`.
pub(crate) fn slapd(name: &str) -> Server {
    let (dir, addr) = (servers::own_folder(), servers::address());
    certify(dir.path(), name);
    let at = dir.path().display();
    let db = dir.path().join("db");
    std::fs::create_dir(&db).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&db, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let config = format!(
        "include /etc/ldap/schema/core.schema\npidfile {at}/pid\nTLSCertificateFile {at}/{CERTIFICATE}\n\
         TLSCertificateKeyFile {at}/{KEY}\ndatabase ldif\ndirectory {at}/db\nsuffix dc=test\n\
         rootdn cn=admin,dc=test\nrootpw secret\n"
    );
    std::fs::write(dir.path().join("slapd.conf"), config).unwrap();
    let words = format!("slapd -f {at}/slapd.conf -h ldap://{addr} -d 0");
    Server::start(dir, split(&words), "slapd", None, addr)
}

fn split(words: &str) -> Vec<String> {
    words.split_whitespace().map(str::to_owned).collect()
}

/// A MariaDB server with TLS for `name`, whose host name it has, and the accounts `native`, `ed` and `open`: the first two have the
/// password `secret` by `mysql_native_password` and `ed25519`, the last has none.
pub(crate) fn mariadb(name: &str) -> Server {
    servers::Mariadb::with(|folder| {
        certify(folder, name);
        let accounts = folder.join("accounts.sql");
        let statements = [
            "INSTALL SONAME 'auth_ed25519';",
            "CREATE USER native@'%' IDENTIFIED VIA mysql_native_password USING PASSWORD('secret');",
            "CREATE USER ed@'%' IDENTIFIED VIA ed25519 USING PASSWORD('secret');",
            "CREATE USER open@'%' IDENTIFIED BY '';",
            "",
        ];
        std::fs::write(&accounts, statements.join("\n")).unwrap();
        let file = |file: &str| folder.join(file).display().to_string();
        vec![
            format!("--init-file={}", accounts.display()),
            format!("--ssl-cert={}", file(CERTIFICATE)),
            format!("--ssl-key={}", file(KEY)),
            format!("--report-host={name}"),
        ]
    })
}

/// A Prosody for clients of the domain `name`.
pub(crate) fn prosody(name: &str) -> Server {
    let (dir, addr) = (servers::own_folder(), servers::address());
    certify(dir.path(), name);
    let at = dir.path().display();
    let config = format!(
        "pidfile = '{at}/pid'\ndata_path = '{at}'\nmodules_enabled = {{ 'saslauth', 'tls', 'disco' }}\n\
         c2s_ports = {{ {} }}\ns2s_ports = {{}}\ninterfaces = {{ '127.0.0.1' }}\nc2s_require_encryption = true\n\
         log = {{ {{ levels = {{ min = 'info' }}, to = 'console' }} }}\nrun_as_root = true\n\
         VirtualHost '{name}'\n ssl = {{ key = '{at}/{KEY}', certificate = '{at}/{CERTIFICATE}' }}\n",
        addr.port()
    );
    std::fs::write(dir.path().join("prosody.cfg.lua"), config).unwrap();
    let words = format!("prosody --config {at}/prosody.cfg.lua -F");
    Server::start(dir, split(&words), "prosody", None, addr)
}

/// A vsftpd for `name`, where anybody may look around.
pub(crate) fn vsftpd(name: &str) -> Server {
    let (dir, addr) = (tempfile::tempdir().unwrap(), servers::address());
    certify(dir.path(), name);
    let at = dir.path().display();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let config = format!(
        "listen=YES\nlisten_address=127.0.0.1\nlisten_port={}\nanonymous_enable=YES\nanon_root={at}/empty\n\
         ssl_enable=YES\nallow_anon_ssl=YES\nrsa_cert_file={at}/{CERTIFICATE}\nrsa_private_key_file={at}/{KEY}\n\
         require_ssl_reuse=NO\nbackground=NO\nsecure_chroot_dir={at}/empty\nseccomp_sandbox=NO\n",
        addr.port()
    );
    std::fs::write(dir.path().join("vsftpd.conf"), config).unwrap();
    let words = format!("env vsftpd {at}/vsftpd.conf");
    Server::start(dir, split(&words), "vsftpd", None, addr)
}
