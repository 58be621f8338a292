use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::Config;

const ONE: &str = "10.0.0.1:1";
const TWO: &str = "10.0.0.2:1";
const NEW: &str = "10.0.0.9:1";

/// The upstream of these backends, as TOML has them.
fn file(to: &str) -> Arc<UpstreamConfig> {
    let text = format!("listen = ':443'\n[[upstream]]\nname = 'db'\nmax_connections = 7\nto = [{to}]\n");
    let text = text + "[[route]]\nsni = 'a.test'\nupstream = 'db'\n";
    let config = Config::parse(Path::new("test.toml"), &text).unwrap_or_else(|error| panic!("{error}"));
    Arc::clone(&config.upstreams[0])
}

fn addr(text: &str) -> UpstreamAddr {
    text.parse().unwrap()
}

fn add(backend: &str) -> Change {
    Change::Add(addr(backend), Said::default())
}

/// The backends in a line: address, weight, and a sign for those that do not serve.
fn told(operator: &Operator) -> String {
    let all = operator.backends().into_iter().map(|stated| {
        let sign = match stated.standing {
            Standing::Serves => "",
            Standing::Drained => "~",
            Standing::Removed => "-",
        };
        format!("{sign}{}*{}", stated.config.address, stated.config.weight)
    });
    Vec::from_iter(all).join(" ")
}

fn both() -> Operator {
    Operator::new(&file("'10.0.0.1:1', { address = '10.0.0.2:1', weight = 3 }"))
}

#[test]
fn what_is_asked_is_laid_over_the_file() {
    let mut operator = both();
    assert_eq!(told(&operator), "10.0.0.1:1*1 10.0.0.2:1*3");
    operator.take(&Change::Drain(addr(ONE)), None).unwrap();
    operator.take(&Change::Weigh(addr(TWO), 9), None).unwrap();
    operator.take(&add(NEW), None).unwrap();
    assert_eq!(told(&operator), "~10.0.0.1:1*1 10.0.0.2:1*9 10.0.0.9:1*1");
    operator.take(&Change::Remove(addr(TWO)), None).unwrap();
    operator.take(&Change::Weigh(addr(NEW), 0), None).unwrap();
    assert_eq!(told(&operator), "~10.0.0.1:1*1 -10.0.0.2:1*3 ~10.0.0.9:1*0");
    operator.take(&Change::Undrain(addr(ONE)), None).unwrap();
    operator.take(&Change::Remove(addr(NEW)), None).unwrap();
    // Added again it is as the file has it.
    operator.take(&add(TWO), None).unwrap();
    assert_eq!(told(&operator), "10.0.0.1:1*1 10.0.0.2:1*3");
    assert!(operator.orders.is_empty(), "what the file says need not be asked for");
}

#[test]
fn what_is_added_takes_what_is_said_and_the_rest_from_the_upstream() {
    let mut operator = both();
    let said = Said { weight: Some(4), tier: Some(2), zone: Some("b".into()), max_connections: None };
    operator.take(&Change::Add(addr(NEW), said), None).unwrap();
    let added = operator.backends().pop().unwrap();
    assert!(added.added && added.by_operator);
    let expected = BackendConfig {
        weight: 4,
        tier: 2,
        zone: Some("b".into()),
        max_connections: Some(7),
        ..BackendConfig::at(addr(NEW))
    };
    assert_eq!(added.config, expected);
    let error = operator.take(&add(NEW), None).unwrap_err();
    assert!(error.to_string().contains("already"), "{error}");
    assert!(matches!(operator.take(&add(ONE), None), Err(OperatorError::Exists(_))));
}

#[test]
fn an_unknown_backend_is_told_with_those_that_are_there() {
    let mut operator = both();
    let error = operator.take(&Change::Drain(addr("10.0.0.1:2")), None).unwrap_err().to_string();
    assert!(error.ends_with("did you mean `10.0.0.1:1`?"), "{error}");
    let error = operator.take(&Change::Remove(addr("db.internal:5432")), None).unwrap_err().to_string();
    assert!(error.ends_with("there are `10.0.0.1:1`, `10.0.0.2:1`"), "{error}");
    operator.take(&Change::Remove(addr(ONE)), None).unwrap();
    operator.take(&Change::Remove(addr(TWO)), None).unwrap();
    let error = operator.take(&Change::Undrain(addr(ONE)), None).unwrap_err().to_string();
    assert!(error.ends_with("there is none"), "{error}");
}

#[test]
fn one_address_of_a_name_can_be_drained_and_nothing_else() {
    let mut operator = Operator::new(&file("'app.internal:443'"));
    let name = || Some(Arc::from("app.internal:443"));
    operator.take(&Change::Drain(addr(ONE)), name()).unwrap();
    assert!(operator.drains(&addr(ONE)) && !operator.drains(&addr(TWO)));
    assert_eq!(operator.drained_addresses(), [ONE]);
    assert_eq!(told(&operator), "app.internal:443*1");
    let error = operator.take(&Change::Weigh(addr(ONE), 2), name()).unwrap_err().to_string();
    assert!(error.contains("an address of `app.internal:443`"), "{error}");
    // It has left the name, and is let go all the same.
    operator.take(&Change::Undrain(addr(ONE)), None).unwrap();
    assert!(operator.drained_addresses().is_empty());
}

#[test]
fn the_file_wins_where_it_has_changed_and_nowhere_else() {
    let mut operator = both();
    operator.take(&Change::Drain(addr(ONE)), None).unwrap();
    operator.take(&Change::Remove(addr(TWO)), None).unwrap();
    operator.take(&add(NEW), None).unwrap();
    let same = file("{ address = '10.0.0.2:1', weight = 3 }, '10.0.0.1:1', '10.0.0.3:1'");
    assert!(operator.follow(&same).is_empty());
    assert!(operator.follows(&same) && !operator.follows(&file("'10.0.0.1:1'")));
    assert_eq!(told(&operator), "-10.0.0.2:1*3 ~10.0.0.1:1*1 10.0.0.3:1*1 10.0.0.9:1*1");
    // One entry is gone, one is another, one is there now.
    let other = file("{ address = '10.0.0.2:1', weight = 4 }, { address = '10.0.0.9:1', weight = 2 }");
    assert_eq!(operator.follow(&other), [addr(ONE), addr(TWO), addr(NEW)]);
    assert_eq!(told(&operator), "10.0.0.2:1*4 10.0.0.9:1*2");
    assert!(operator.orders.is_empty());
}

#[test]
fn the_number_of_orders_is_bounded() {
    let mut operator = both();
    let backend = |n: usize| addr(&format!("10.1.{}.{}:1", n / 256, n % 256));
    for n in 0..MOST {
        operator.take(&Change::Add(backend(n), Said::default()), None).unwrap();
    }
    assert!(matches!(operator.take(&add(NEW), None), Err(OperatorError::Full)));
    assert!(matches!(operator.take(&Change::Drain(addr(ONE)), None), Err(OperatorError::Full)));
    // What is known already can change.
    operator.take(&Change::Drain(backend(5)), None).unwrap();
    operator.take(&Change::Remove(backend(5)), None).unwrap();
    operator.take(&add(NEW), None).unwrap();
    assert_eq!(operator.backends().len(), 2 + MOST);
}

proptest! {
    /// Whatever is asked: undone, or once the file has changed all that was asked of, it is as the file says.
    #[test]
    fn all_that_was_asked_can_be_undone(orders in proptest::collection::vec((0..5u8, 0..4u8, 0..3u32), 0..40)) {
        let file_backends = "'10.0.0.0:1', '10.0.0.1:1'";
        let mut operator = Operator::new(&file(file_backends));
        for (what, which, weight) in orders {
            let backend = addr(&format!("10.0.0.{which}:1"));
            let change = match what {
                0 => Change::Add(backend, Said { weight: Some(weight), ..Said::default() }),
                1 => Change::Remove(backend),
                2 => Change::Weigh(backend, weight),
                3 => Change::Drain(backend),
                _ => Change::Undrain(backend),
            };
            let before = told(&operator);
            if operator.take(&change, None).is_err() {
                prop_assert_eq!(told(&operator), before);
            }
        }
        let mut undone = operator.clone();
        for stated in operator.backends() {
            let backend = stated.config.address;
            let in_file = undone.file.backends.iter().any(|config| config.address == backend);
            // Whatever it is, it is gone then, and added again as the file has it.
            let _ = undone.take(&Change::Remove(backend.clone()), None);
            if in_file {
                undone.take(&Change::Add(backend, Said::default()), None).unwrap();
            }
        }
        prop_assert_eq!(told(&undone), "10.0.0.0:1*1 10.0.0.1:1*1");
        prop_assert!(undone.orders.is_empty());
        let other = file("'10.0.0.7:1', { address = '10.0.0.0:1', tier = 2 }, { address = '10.0.0.2:1', tier = 2 }");
        operator.follow(&other);
        prop_assert!(operator.orders.keys().all(|backend| *backend == addr("10.0.0.3:1")));
    }
}
