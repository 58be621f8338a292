//! Many certificates: how long they take to be read, and how much memory.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

use super::*;

const MANY: usize = 10_000;

/// Bytes that the process has in memory.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Seconds of CPU that the process has taken.
#[allow(clippy::cast_precision_loss, reason = "for people to read")]
fn cpu() -> f64 {
    let taken = clock_gettime(ClockId::ProcessCPUTime);
    taken.tv_sec as f64 + taken.tv_nsec as f64 / 1e9
}

/// So many certificates of one name each, with one issuer.
fn write(folder: &Path, count: usize) {
    let (issuer, root) = issuer();
    for number in 0..count {
        let host = format!("host-{number}.example.com");
        let made = Wanted::new(&[&host]).signed_by(&issuer, &root);
        fs::write(folder.join(format!("{host}.pem")), made.whole()).unwrap();
    }
}

#[test]
fn ten_thousand_certificates_are_read_in_no_time() {
    let folder = Folder::new();
    write(folder.dir.path(), MANY);
    let (began, before, taken) = (Instant::now(), resident(), cpu());
    let (store, errors) = folder.load();
    let (took, grown, taken) = (began.elapsed(), resident().saturating_sub(before), cpu() - taken);
    println!("{MANY} read in {took:?}, {taken:.2} s of CPU, {} KiB more in memory", grown / 1024);
    assert_eq!(store.len(), MANY);
    assert!(errors.iter().all(CertificateError::is_warning), "the files are readable by all");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(grown < 100 << 20, "{grown}");
    // All have the same issuer, once.
    let mut issuers = store.served().iter().map(|one| Arc::as_ptr(&one.chain()[0]));
    let first = issuers.next();
    assert!(issuers.all(|issuer| Some(issuer) == first));

    let live = Certificates::new(vec![folder.source()], store, &folder.registry);
    let later = SystemTime::now() + Duration::from_secs(60);
    live.refresh_at(later);
    let (began, taken) = (Instant::now(), cpu());
    assert_eq!(live.refresh_at(later), refreshed(0, 0, 0));
    println!("looked at again in {:?}, {:.3} s of CPU", began.elapsed(), cpu() - taken);
    let began = Instant::now();
    let asked = name("host-77.example.com");
    for _ in 0..100_000 {
        assert!(live.store().find(&asked).is_some());
    }
    println!("found in {:?}", began.elapsed() / 100_000);
    let text = folder.registry.render();
    let series = text.lines().filter(|line| line.starts_with("portcullis_tls_certificate_not_after"));
    assert_eq!(series.count(), 1001);
    assert!(text.contains("seconds{certificate=\"other\"} 1"), "{text}");
}
