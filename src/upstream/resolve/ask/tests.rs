use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SRV};

use hickory_resolver::net::NoRecords;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn answer(list: &[&str], ttl: Duration) -> Option<Result<Answer<IpAddr>, LookupError>> {
    Some(Ok(Answer { records: ips(list), ttl }))
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Record {
    let data = RData::SRV(SRV::new(priority, weight, port, name(target)));
    Record::from_rdata(name("_db._tcp.example.com."), 60, data)
}

fn address(host: &str, ttl: u32, ip: &str) -> Record {
    let data = match ip.parse().unwrap() {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(name(host), ttl, data)
}

fn nothing(code: ResponseCode) -> NoRecords {
    NoRecords::new(Query::query(name("a.example.com."), RecordType::A), code)
}

#[test]
fn a_family_without_addresses_is_no_failure() {
    let none = || Some(Err(LookupError::NoRecord { ttl: Some(MINUTE) }));
    let said = Said { v4: answer(&["192.0.2.1"], MINUTE), v6: none() };
    let found = merged(said, &ips(&["192.0.2.9", "2001:db8::9"])).unwrap();
    assert_eq!(found.answer, Answer { records: ips(&["192.0.2.1"]), ttl: MINUTE });
    assert!(found.partly.is_none());
    let both = merged(Said { v4: answer(&["192.0.2.1"], MINUTE), v6: answer(&["::1"], MINUTE / 2) }, &[]);
    assert_eq!(both.unwrap().answer, Answer { records: ips(&["192.0.2.1", "::1"]), ttl: MINUTE / 2 });
}

#[test]
fn a_family_that_fails_keeps_its_addresses() {
    let before = ips(&["192.0.2.9", "2001:db8::9"]);
    let failed = || Some(Err(LookupError::Timeout));
    let found = merged(Said { v4: answer(&["192.0.2.1"], MINUTE), v6: failed() }, &before).unwrap();
    assert_eq!(found.answer.records, ips(&["192.0.2.1", "2001:db8::9"]));
    assert!(matches!(found.partly, Some(LookupError::Timeout)));
    let found = merged(Said { v4: failed(), v6: answer(&["::1"], MINUTE) }, &before).unwrap();
    assert_eq!(found.answer.records, ips(&["192.0.2.9", "::1"]));
}

#[test]
fn a_family_that_is_not_asked_for_has_no_addresses_left() {
    let before = ips(&["192.0.2.9", "2001:db8::9"]);
    let found = merged(Said { v4: answer(&["192.0.2.1"], MINUTE), v6: None }, &before).unwrap();
    assert_eq!(found.answer, Answer { records: ips(&["192.0.2.1"]), ttl: MINUTE });
    let failed = Some(Err(LookupError::Timeout));
    assert!(matches!(merged(Said { v4: None, v6: failed }, &before), Err(LookupError::Timeout)));
}

#[test]
fn without_an_answer_a_failure_goes_before_nothing() {
    let none = || Some(Err(LookupError::NoRecord { ttl: Some(MINUTE) }));
    let failed = || Some(Err(LookupError::Timeout));
    for said in [Said { v4: none(), v6: failed() }, Said { v4: failed(), v6: none() }] {
        assert!(matches!(merged(said, &[]), Err(LookupError::Timeout)));
    }
    let shorter = Some(Err(LookupError::NoName { ttl: Some(MINUTE / 2) }));
    let error = merged(Said { v4: none(), v6: shorter }, &ips(&["192.0.2.9"])).unwrap_err();
    assert_eq!(error.ttl(), Some(MINUTE / 2));
    assert!(error.is_negative());
}

#[test]
fn what_a_nameserver_says_is_told_from_what_it_cannot_tell() {
    let told = |mut records: NoRecords, ttl: Option<u32>| {
        records.negative_ttl = ttl;
        LookupError::from_net(records.into())
    };
    let error = told(nothing(ResponseCode::NXDomain), Some(60));
    assert!(matches!(error, LookupError::NoName { ttl: Some(MINUTE) }), "{error:?}");
    let error = told(nothing(ResponseCode::NoError), None);
    assert!(matches!(error, LookupError::NoRecord { ttl: None }), "{error:?}");
    let mut referral = nothing(ResponseCode::NoError);
    referral.ns = Some(Arc::new([]));
    for failure in [referral, nothing(ResponseCode::Refused), nothing(ResponseCode::Unknown(99))] {
        let error = told(failure, None);
        assert!(matches!(error, LookupError::Failed(_)), "{error:?}");
    }
    assert!(matches!(LookupError::from_net(NetError::Timeout), LookupError::Timeout));
    let refused = NetError::Dns(DnsError::ResponseCode(ResponseCode::ServFail));
    assert!(!LookupError::from_net(refused).is_negative());
}

#[test]
fn records_of_a_service_are_read_in_their_order() {
    let alias = Record::from_rdata(name("a.example.com."), 60, RData::CNAME(CNAME(name("b.example.com."))));
    let answers = [
        srv(20, 5, 2, "b.example.com."),
        alias,
        srv(10, 0, 1, "A.Example.com."),
        srv(10, 0, 0, "c."),
        srv(0, 0, 9, "."),
    ];
    let records = instances(&answers);
    let told: Vec<_> =
        records.iter().map(|record| (record.priority, record.target.to_ascii(), record.port)).collect();
    assert_eq!(told, [(10, "a.example.com.".to_owned(), 1), (20, "b.example.com.".to_owned(), 2)]);
    let many: Vec<Record> = (0..1000).rev().map(|port| srv(port / 10, 1, port + 1, "a.")).collect();
    let records = instances(&many);
    assert_eq!((records.len(), records[0].port, records[255].port), (256, 1, 256));
}

#[test]
fn addresses_beside_an_answer_are_those_of_the_target() {
    let target = name("a.example.com.");
    let additional = [
        address("a.example.com.", 60, "192.0.2.1"),
        address("A.example.COM.", 30, "192.0.2.2"),
        address("b.example.com.", 10, "192.0.2.3"),
        address("b.example.com.", 10, "2001:db8::3"),
    ];
    let v4 = given(&additional, &target, RecordType::A);
    assert_eq!(v4, Some(Answer { records: ips(&["192.0.2.1", "192.0.2.2"]), ttl: MINUTE / 2 }));
    assert_eq!(given(&additional, &target, RecordType::AAAA), None, "to be asked for");
}

#[test]
fn each_address_of_a_target_is_an_instance_and_no_weight_is_zero() {
    let records = instances(&[srv(1, 0, 80, "a."), srv(1, 7, 81, "a."), srv(2, 3, 82, "b.")]);
    let targets = Targets::from([("a.".into(), ips(&["192.0.2.1", "::1"]))]);
    let found = joined(&records, &targets);
    let told: Vec<_> = found.iter().map(|found| (found.to_string(), found.priority, found.weight)).collect();
    let expected = [("192.0.2.1:80", 1, 1), ("[::1]:80", 1, 1), ("192.0.2.1:81", 1, 7), ("[::1]:81", 1, 7)];
    assert_eq!(told, expected.map(|(found, priority, weight)| (found.to_owned(), priority, weight)));
}

#[test]
fn a_target_that_fails_keeps_its_addresses_and_one_that_is_gone_has_none() {
    let records = instances(&[srv(1, 1, 80, "a."), srv(1, 1, 81, "b."), srv(1, 1, 82, "c.")]);
    let of = |name: &str, result| Target { name: name.into(), result };
    let found = |ip: &str, ttl| Ok(Addresses { answer: Answer { records: ips(&[ip]), ttl }, partly: None });
    let (failed, gone) = (|| Err(LookupError::Timeout), || Err(LookupError::NoName { ttl: None }));
    let before = Targets::from([("b.".into(), ips(&["192.0.2.2"])), ("c.".into(), ips(&["192.0.2.3"]))]);
    let said = vec![of("a.", found("192.0.2.1", MINUTE / 2)), of("b.", failed()), of("c.", gone())];
    let instances = settled(&records, MINUTE, said, &before).unwrap();
    let told: Vec<String> = instances.answer.records.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["192.0.2.1:80", "192.0.2.2:81"]);
    assert_eq!(instances.answer.ttl, MINUTE / 2, "the shortest");
    assert!(matches!(instances.partly, Some(LookupError::Timeout)));
    // The next time it is gone after all.
    let said = vec![of("a.", failed()), of("b.", gone()), of("c.", gone())];
    let instances = settled(&records, MINUTE, said, &instances.targets).unwrap();
    assert_eq!(instances.targets, Targets::from([("a.".into(), ips(&["192.0.2.1"]))]));
}

#[test]
fn a_service_none_of_whose_targets_is_found_is_not_one_without_instances() {
    let records = instances(&[srv(1, 1, 80, "a."), srv(1, 1, 81, "b.")]);
    let said = |a, b| {
        let of = |name: &str, error| Target { name: name.into(), result: Err(error) };
        settled(&records, MINUTE, vec![of("a.", a), of("b.", b)], &Targets::new()).map(|found| found.answer)
    };
    let gone = || LookupError::NoName { ttl: None };
    assert!(matches!(said(gone(), gone()), Err(LookupError::NoName { .. })));
    assert!(matches!(said(gone(), LookupError::Timeout), Err(LookupError::Timeout)));
    let none = settled(&instances(&[srv(0, 0, 0, ".")]), MINUTE, vec![], &Targets::new()).unwrap();
    assert_eq!(none.answer, Answer { records: vec![], ttl: MINUTE });
}

#[test]
fn names_are_absolute_however_they_are_written() {
    for text in ["_db._tcp.example.com", "_db._tcp.example.com."] {
        assert_eq!(absolute(text).unwrap().to_ascii(), "_db._tcp.example.com.");
    }
    let long = "a".repeat(64);
    assert!(matches!(absolute(&long), Err(LookupError::Failed(_))));
}
