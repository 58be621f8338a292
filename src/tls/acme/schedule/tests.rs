use super::*;

const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);
const RULES: Rules = Rules { at_most: 2, renew_before: None };

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + 20_000 * DAY
}

/// Good for 90 days, of which so many are over.
fn aged(days: u32) -> Validity {
    Validity { not_before: start() - days * DAY, not_after: start() + 90 * DAY - days * DAY }
}

fn due(schedule: &Schedule, name: &str) -> SystemTime {
    schedule.due().find(|(own, _)| &***own == name).unwrap().1
}

fn ordered(work: Result<Work, Option<SystemTime>>) -> String {
    match work {
        Ok(Work::Order(name)) => name.to_string(),
        other => panic!("{other:?}"),
    }
}

fn with(rules: Rules, names: &[(&str, Option<Validity>)]) -> Schedule {
    let mut schedule = Schedule::new(rules, 7);
    for (name, held) in names {
        schedule.add((*name).into(), *held, false, start());
    }
    schedule
}

#[test]
fn names_without_a_certificate_are_ordered_at_once_two_at_a_time() {
    let mut schedule = with(RULES, &[("a", None), ("b", None), ("c", None)]);
    assert_eq!(ordered(schedule.next(start())), "a");
    assert_eq!(ordered(schedule.next(start())), "b");
    assert_eq!(schedule.next(start()), Err(None), "two are under way");
    schedule.issued("a", aged(0), start());
    assert_eq!(ordered(schedule.next(start())), "c");
}

#[test]
fn certificates_are_renewed_when_a_third_of_their_time_is_left_and_not_together() {
    let names: Vec<String> = (0..100).map(|number| format!("n{number}")).collect();
    let mut schedule = Schedule::new(RULES, 7);
    for name in &names {
        schedule.add(name.as_str().into(), Some(aged(0)), false, start());
    }
    let dues: Vec<_> = names.iter().map(|name| due(&schedule, name)).collect();
    assert!(dues.iter().all(|due| (start() + 57 * DAY..=start() + 60 * DAY).contains(due)), "{dues:?}");
    assert!(dues.iter().max() > dues.iter().min());
    let next = schedule.next(start()).unwrap_err().unwrap();
    assert!(next <= *dues.iter().min().unwrap());
}

#[test]
fn what_is_due_at_the_start_does_not_begin_at_once_while_there_is_time() {
    let mut schedule = Schedule::new(RULES, 7);
    let names: Vec<Arc<str>> = (0..100).map(|number| format!("n{number}").into()).collect();
    for name in &names {
        schedule.add(Arc::clone(name), Some(aged(80)), false, start());
    }
    let early = names.iter().filter(|name| due(&schedule, name) < start() + 10 * MINUTE).count();
    assert!((1..40).contains(&early), "{early}");
    assert!(names.iter().all(|name| due(&schedule, name) <= start() + 60 * MINUTE));
    // One that is over cannot wait, and comes first.
    schedule.add("over".into(), Some(aged(95)), false, start());
    assert_eq!(ordered(schedule.next(start())), "over");
}

#[test]
fn the_configuration_may_want_it_earlier_but_not_without_end() {
    let rules = Rules { renew_before: Some(40 * DAY), ..RULES };
    let schedule = with(rules, &[("a", Some(aged(0)))]);
    assert!((start() + 47 * DAY..=start() + 50 * DAY).contains(&due(&schedule, "a")));
    let rules = Rules { renew_before: Some(365 * DAY), ..RULES };
    let mut schedule = with(rules, &[("a", None)]);
    assert_eq!(ordered(schedule.next(start())), "a");
    assert!(schedule.issued("a", aged(0), start()) >= start() + 42 * DAY);
    // Nor one that is good for seconds.
    let short = Validity { not_before: start(), not_after: start() + Duration::from_secs(4) };
    schedule.add("b".into(), None, false, start());
    assert_eq!(ordered(schedule.next(start())), "b");
    assert!(schedule.issued("b", short, start()) >= start() + Duration::from_secs(1));
}

#[test]
fn a_name_that_fails_waits_longer_each_time_and_no_other_does() {
    let mut schedule = with(RULES, &[("a", None), ("b", None)]);
    let mut now = start();
    for minutes in [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360, 360] {
        assert_eq!(ordered(schedule.next(now)), "a");
        let again = schedule.failed("a", None, now);
        let paused = again.duration_since(now).unwrap();
        let expected = minutes * MINUTE;
        assert!((expected.mul_f64(0.9)..=expected.mul_f64(1.1)).contains(&paused), "{minutes}: {paused:?}");
        if minutes == 1 {
            assert_eq!(ordered(schedule.next(now)), "b");
            schedule.issued("b", aged(0), now);
        }
        now = again;
    }
    assert_eq!(ordered(schedule.next(now)), "a");
    schedule.issued("a", aged(0), now);
    schedule.advised("a", None, None, now);
    assert!(due(&schedule, "a") > now + MINUTE);
}

#[test]
fn an_authority_that_says_when_to_come_back_is_heard_within_reason() {
    let mut schedule = with(RULES, &[("a", None)]);
    schedule.next(start()).unwrap();
    assert_eq!(schedule.failed("a", Some(start() + 120 * MINUTE), start()), start() + 120 * MINUTE);
    let now = start() + 120 * MINUTE;
    schedule.next(now).unwrap();
    assert_eq!(schedule.failed("a", Some(now + 300 * DAY), now), now + DAY);
    // What is over is no reason to hurry.
    let now = now + DAY;
    schedule.next(now).unwrap();
    assert!(schedule.failed("a", Some(start()), now) > now + MINUTE);
}

#[test]
fn when_the_authority_is_away_all_wait_and_nothing_is_held_against_names() {
    let mut schedule = with(RULES, &[("a", None), ("b", None)]);
    schedule.next(start()).unwrap();
    schedule.next(start()).unwrap();
    let until = schedule.outage(Some("a"), None, start());
    assert_eq!(schedule.outage(Some("b"), None, start()), until, "the same one");
    assert_eq!(schedule.next(start()), Err(Some(until)));
    let mut now = until;
    for minutes in [2, 4, 8, 16, 32, 60, 60] {
        schedule.next(now).unwrap();
        let until = schedule.outage(Some("a"), None, now);
        let paused = until.duration_since(now).unwrap();
        assert!(paused >= (minutes * MINUTE).mul_f64(0.9) && paused <= (minutes * MINUTE).mul_f64(1.1));
        now = until;
    }
    schedule.next(now).unwrap();
    schedule.outage(Some("a"), None, now);
    // Who configures may know better.
    schedule.hasten(now);
    assert_eq!(ordered(schedule.next(now)), "a");
    let again = schedule.failed("a", None, now);
    assert!(again < now + 2 * MINUTE, "its first failure");
}

#[test]
fn another_configuration_hastens_what_failed_but_not_below_the_first_pause() {
    let mut schedule = with(RULES, &[("a", None)]);
    let mut now = start();
    for _ in 0..8 {
        schedule.next(now).unwrap();
        now = schedule.failed("a", None, now);
    }
    schedule.next(now).unwrap();
    schedule.failed("a", None, now);
    schedule.hasten(now + Duration::from_secs(1));
    assert_eq!(due(&schedule, "a"), now + MINUTE);
    schedule.hasten(now + 5 * MINUTE);
    assert_eq!(due(&schedule, "a"), now + MINUTE, "at once");
}

#[test]
fn the_authority_is_asked_when_to_renew_and_obeyed() {
    let mut schedule = with(RULES, &[("a", Some(aged(0)))]);
    let asked = schedule.next(start()).unwrap_err().unwrap();
    assert!(asked <= start() + 60 * MINUTE);
    assert_eq!(schedule.next(asked), Ok(Work::Ask("a".into())));
    let window = (start() + 10 * DAY, start() + 12 * DAY);
    let chosen = schedule.advised("a", Some(window), Some(30 * MINUTE), asked).unwrap();
    assert!((window.0..=window.1).contains(&chosen));
    // It is asked again when it says, and the moment stays while the window does.
    assert_eq!(schedule.next(asked), Err(Some(asked + 30 * MINUTE)));
    let now = asked + 30 * MINUTE;
    assert_eq!(schedule.next(now), Ok(Work::Ask("a".into())));
    assert_eq!(schedule.advised("a", Some(window), None, now), None);
    assert_eq!(due(&schedule, "a"), chosen);
    assert_eq!(schedule.next(now), Err(Some(now + ADVICE_EVERY)));
    // A window that is over: at once, as when many certificates are taken back.
    let now = now + ADVICE_EVERY;
    assert_eq!(schedule.next(now), Ok(Work::Ask("a".into())));
    let over = (start() - 2 * DAY, start() - DAY);
    assert_eq!(schedule.advised("a", Some(over), None, now), Some(now));
    assert_eq!(ordered(schedule.next(now)), "a");
    // One that ends before it begins says nothing.
    schedule.issued("a", aged(0), now);
    let before = due(&schedule, "a");
    assert_eq!(schedule.advised("a", Some((window.1, window.0)), None, now), None);
    assert_eq!(due(&schedule, "a"), before);
}

#[test]
fn what_the_configuration_wants_at_the_latest_comes_before_what_the_authority_says() {
    let rules = Rules { renew_before: Some(85 * DAY), ..RULES };
    let mut schedule = with(rules, &[("a", Some(aged(0)))]);
    let asked = schedule.next(start()).unwrap_err().unwrap();
    schedule.next(asked).unwrap();
    let window = (start() + 60 * DAY, start() + 61 * DAY);
    assert_eq!(schedule.advised("a", Some(window), None, asked), Some(start() + 5 * DAY));
}

#[test]
fn a_certificate_of_another_authority_is_replaced_soon() {
    let mut schedule = Schedule::new(RULES, 7);
    schedule.add("a".into(), Some(aged(0)), true, start());
    assert!(due(&schedule, "a") <= start() + 60 * MINUTE);
    let next = schedule.next(start()).unwrap_err().unwrap();
    assert_eq!(ordered(schedule.next(next)), "a", "the other authority is not asked about it");
}

#[test]
fn names_that_are_gone_are_forgotten_when_nothing_is_under_way_for_them() {
    let mut schedule = with(RULES, &[("a", None), ("b", None), ("c", None)]);
    schedule.next(start()).unwrap();
    schedule.next(start()).unwrap();
    schedule.retain(|name| name == "c");
    assert_eq!(schedule.next(start()), Err(None), "both still go on");
    schedule.issued("a", aged(0), start());
    schedule.retain(|name| name == "c");
    assert_eq!(ordered(schedule.next(start())), "c");
    assert!(!schedule.has("a") && schedule.has("b"));
    schedule.failed("a", None, start());
}
