//! What the process may still do to the file system once it serves: read its configuration and what the system says
//! about names, write its logs. Sockets are not restricted.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    make_bitflags, path_beneath_rules,
};
use tracing::{info, warn};

use crate::config::{
    AdminAddr, CertificateSource, CertificateStore, Config, HttpConfig, LogTarget, RouteConfig, Sandbox,
};

/// Read from time to time: names (hosts, resolv.conf and where that leads to), users, figures of the process, settings
/// of the kernel.
const SYSTEM: [&str; 3] = ["/etc", "/proc", "/run/systemd/resolve"];

/// Restricts this thread, and all that it starts from now on, if the configuration asks for that. Kernels that do
/// less, or nothing, are no reason not to serve; the log tells.
pub fn enter(config: &Config) {
    if config.sandbox == Sandbox::Off {
        return;
    }
    let kept = kept(config);
    // What is not there yet cannot be let through.
    for folder in &kept {
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    }
    match restrict(&readable(config), [&logs(config), &sockets(config), &kept]) {
        Ok(RulesetStatus::FullyEnforced) => info!("in the sandbox (Landlock)"),
        Ok(RulesetStatus::PartiallyEnforced) => {
            warn!("in the sandbox (Landlock) as far as this kernel goes, which is not all the way");
        }
        Ok(RulesetStatus::NotEnforced) => warn!("not in the sandbox: this kernel has no Landlock"),
        Err(error) => warn!(%error, "not in the sandbox"),
    }
}

/// Nothing is read outside `readable` and `kept`, no file written outside `logs` and `kept`, none made or removed outside those
/// and `sockets`, and nothing executed.
fn restrict(
    readable: &BTreeSet<PathBuf>,
    [logs, sockets, kept]: [&BTreeSet<PathBuf>; 3],
) -> Result<RulesetStatus, RulesetError> {
    let reading = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let logging: BitFlags<AccessFs> = make_bitflags!(AccessFs::{WriteFile | MakeReg});
    let binding: BitFlags<AccessFs> = make_bitflags!(AccessFs::{MakeSock | RemoveFile});
    let keeping: BitFlags<AccessFs> =
        make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | MakeReg | MakeDir | RemoveFile});
    let status = Ruleset::default()
        // The last version that adds a right over files; of later ones nothing is wanted.
        .handle_access(AccessFs::from_all(ABI::V5))?
        .create()?
        .add_rules(path_beneath_rules(readable, reading))?
        .add_rules(path_beneath_rules(logs, logging))?
        .add_rules(path_beneath_rules(sockets, binding))?
        .add_rules(path_beneath_rules(kept, keeping))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// The folders of the configuration's files, of its lists and of authorities, those that files are served from, and what the
/// system says.
fn readable(config: &Config) -> BTreeSet<PathBuf> {
    let origins = config.effective.iter().filter_map(|setting| setting.origin.as_ref());
    let routes = config.routes.iter().map(|route| &route.origin);
    let files = origins.chain(routes).map(|origin| folder(&origin.file));
    let limits = &config.limits;
    let lists = limits.allow_files.iter().chain(&limits.deny_files).map(|list| folder(&list.path));
    let of_routes = config.routes.iter().flat_map(|route| route.action.backends()).map(|to| &to.upstream);
    let upstreams = config.upstreams.iter().chain(of_routes);
    let of_upstreams = upstreams.flat_map(|upstream| {
        let roots = upstream.health.as_ref().and_then(|health| health.check.tls()?.verify.file());
        roots.into_iter().chain(upstream.tls.iter().flat_map(|tls| tls.files()))
    });
    let acme = config.acme.iter().flat_map(|acme| {
        let secret = acme.external_account.as_ref().and_then(|account| account.hmac.file());
        acme.roots.file.as_deref().into_iter().chain(secret).map(folder)
    });
    let certificates = config.routes.iter().flat_map(certificate_folders);
    let served = config.routes.iter().flat_map(|route| route.action.roots()).map(Path::to_owned);
    files
        .chain(acme)
        .chain(certificates)
        .chain(served)
        .chain(lists)
        .chain(of_upstreams.map(folder))
        .chain(SYSTEM.map(PathBuf::from))
        .collect()
}

/// Where this process keeps what it has made.
fn kept(config: &Config) -> BTreeSet<PathBuf> {
    let of_route = |route: &RouteConfig| match &route.action.tls()?.certificates {
        CertificateStore::SelfSigned(folder) => folder.clone(),
        CertificateStore::Files(_) | CertificateStore::Acme(_) => None,
    };
    let acme = config.acme.iter().map(|acme| acme.state.clone());
    // What waits for slow clients lies there, in files without a name.
    let has_backends = |http: &HttpConfig| http.backends().next().is_some();
    let spools = config.routes.iter().any(|route| route.action.http().is_some_and(|http| has_backends(http)));
    let spool = spools.then(std::env::temp_dir);
    config.routes.iter().filter_map(of_route).chain(acme).chain(spool).collect()
}

/// Where the certificates of a route are; what is a folder itself may have others in it.
fn certificate_folders(route: &RouteConfig) -> Vec<PathBuf> {
    let Some(CertificateStore::Files(sources)) = route.action.tls().map(|tls| &tls.certificates) else {
        return Vec::new();
    };
    let of_source = |source: &CertificateSource| match source {
        CertificateSource::Path(path) if path.is_dir() => vec![path.clone()],
        CertificateSource::Path(path) => vec![folder(path)],
        CertificateSource::Pair { certificate, key } => vec![folder(certificate), folder(key)],
    };
    sources.iter().flat_map(of_source).collect()
}

fn logs(config: &Config) -> BTreeSet<PathBuf> {
    match &config.access_log.to {
        LogTarget::File(path) => BTreeSet::from([folder(path)]),
        LogTarget::Off | LogTarget::Stdout | LogTarget::Stderr => BTreeSet::new(),
    }
}

fn sockets(config: &Config) -> BTreeSet<PathBuf> {
    match config.admin.as_ref().map(|admin| &admin.bind) {
        Some(AdminAddr::Unix(path)) => BTreeSet::from([folder(path)]),
        Some(AdminAddr::Tcp(_)) | None => BTreeSet::new(),
    }
}

/// Where a file is.
fn folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::{self, ErrorKind};
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_what_the_configuration_names_is_left() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |folder: &str| {
            let path = inside.path().join(folder);
            fs::create_dir(&path).unwrap();
            path
        };
        let (etc, log, run, www) = (at("etc"), at("log"), at("run"), at("www"));
        fs::write(www.join("index.html"), "x").unwrap();
        fs::write(etc.join("portcullis.toml"), "x").unwrap();
        fs::write(outside.path().join("secret"), "x").unwrap();
        let text = format!(
            "listen = ':443'\nsandbox = 'landlock'\naccess_log = '{}/access.log'\nadmin = 'unix:{}/admin.sock'\n\
             [[route]]\nsni = 'a.test'\nto = '10.0.0.1:443'\n\
             [[route]]\nprotocol = 'http'\nfiles = '{}'\n",
            log.display(),
            run.display(),
            www.display()
        );
        let config = Config::parse(&etc.join("portcullis.toml"), &text).unwrap();
        let append = |path: PathBuf| OpenOptions::new().create(true).append(true).open(path).map(drop);
        let kind = |result: io::Result<()>| result.map_err(|error| error.kind());
        let refused = Err(ErrorKind::PermissionDenied);
        // Only this thread is restricted, and ends with the test.
        let inside = || {
            let status =
                restrict(&readable(&config), [&logs(&config), &sockets(&config), &kept(&config)]).unwrap();
            assert_ne!(status, RulesetStatus::NotEnforced, "this test needs a kernel with Landlock (5.13)");
            assert_eq!(kind(fs::read(etc.join("portcullis.toml")).map(drop)), Ok(()));
            assert_eq!(kind(fs::read(www.join("index.html")).map(drop)), Ok(()));
            assert_eq!(kind(append(www.join("index.html"))), refused);
            assert_eq!(kind(fs::read("/etc/hosts").map(drop)), Ok(()));
            assert_eq!(kind(fs::read("/proc/self/stat").map(drop)), Ok(()));
            assert_eq!(kind(append(log.join("access.log"))), Ok(()));
            assert_eq!(kind(append(log.join("access.log.2"))), Ok(()), "after it was rotated away");
            assert_eq!(kind(UnixListener::bind(run.join("admin.sock")).map(drop)), Ok(()));
            assert_eq!(kind(fs::remove_file(run.join("admin.sock"))), Ok(()));
            assert_eq!(kind(fs::read(outside.path().join("secret")).map(drop)), refused);
            assert_eq!(kind(fs::read(log.join("access.log")).map(drop)), refused, "logs are only written");
            assert_eq!(kind(append(etc.join("portcullis.toml"))), refused);
            assert_eq!(kind(append(outside.path().join("new"))), refused);
            assert_eq!(kind(fs::remove_file(outside.path().join("secret"))), refused);
            assert_eq!(kind(Command::new("/bin/true").status().map(drop)), refused);
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
        assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"x");
    }
}
