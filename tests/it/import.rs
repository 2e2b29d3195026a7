//! A table of people and what they get: all of it, or nothing.

use std::fmt::Write as _;

use crate::support::{Home, text};

const PEOPLE: &str = "\
wallet,kind,parent,zone,overdraft,draw,draw_every,amount,expires,every,on,rollover,memo
acme,organisation,,Europe/Berlin,,,,,,,,,
tools,team,acme,,,,,5000,2099-01-01,,,,\"the pool, of all\"
ada,,tools,,2.5,200,month,100,,month,1,20,pay
bob,,tools,America/New_York,,all,,50.25,2099-07-01,,,,
";

fn write(home: &Home, name: &str, table: &str) -> String {
    let path = home.path().join(name);
    std::fs::write(&path, table).expect("it can be written");
    path.display().to_string()
}

#[test]
fn a_table_is_imported_once_however_often_it_comes() {
    let home = Home::new();
    let file = write(&home, "people.csv", PEOPLE);
    let books = home.books();
    let plan = home.json(&["wallet", "import", &file, "--dry-run"]);
    assert_eq!((&plan["changed"], &plan["rows"][2]["created"]), (&4.into(), &true.into()));
    assert_eq!(home.books(), books, "a dry run changes nothing");

    let done = home.json(&["wallet", "import", &file]);
    assert_eq!(done["rows"], plan["rows"], "what was shown is what is done");
    let ada = home.json(&["wallet", "show", "ada"]);
    assert_eq!((&ada["balance"], &ada["zone"], &ada["overdraft"]), (&100.into(), &"Europe/Berlin".into(), &2.5.into()));
    assert_eq!((&ada["recurring"][0]["rollover"], &ada["draw"]["cap"]), (&20.into(), &200.into()));
    let bob = home.json(&["wallet", "show", "bob"]);
    assert_eq!((&bob["balance"], &bob["grants"][0]["expires"]), (&50.25.into(), &"2099-07-01T04:00:00Z".into()));
    assert_eq!(home.json(&["wallet", "show", "tools"])["grants"][0]["memo"], "the pool, of all");

    let books = home.books();
    assert_eq!(home.json(&["wallet", "import", &file])["changed"], 0);
    assert_eq!(home.books(), books, "the same table again changes nothing");
    let more = write(&home, "more.csv", "wallet,draw,amount,key\nada,300,,\nbob,,10,june\nbob,,10,july\n");
    let shown = text(&home.run(&["wallet", "import", &more]).stdout);
    assert!(shown.contains("~ ada: draw 200 a month -> 300") && shown.contains("+10 credits"), "{shown}");
    assert_eq!(home.json(&["wallet", "show", "bob"])["balance"], 70.25);
    home.verify();
}

#[test]
fn one_bad_row_of_two_thousand_changes_nothing_and_is_named() {
    let home = Home::new();
    home.wallet("ada", 5);
    let books = home.books();
    let table = |bad: &str| {
        let mut table = "wallet,parent,zone,amount,expires,every,on\n".to_owned();
        for row in 1..=2000 {
            let person = format!("person-{row},,,100,,month,1");
            writeln!(table, "{}", if row == 1999 { bad } else { &person }).expect("a string takes it");
        }
        table
    };
    for (bad, column, said) in [
        ("eve,,,-5,,,", "amount", "digits"),
        ("eve,,,99999999999999999999,,,", "amount", "too large"),
        ("eve,,,0,,,", "amount", "more than zero"),
        ("eve,,Mars/Base,5,,,", "zone", "Europe/Berlin"),
        ("eve,nobody,,5,,,", "parent", "a row above"),
        ("ada,person-1,,5,,,", "parent", "order"),
        ("eve,,,5,2020-01-01,,", "amount", "later expiry"),
        ("eve,,,5,30d,,", "expires", "2026-12-31"),
        ("eve,,,5,,fortnight,", "every", "week"),
        ("eve,,,5,,week,9", "amount", "no such day"),
        ("eve,,,,,week,", "every", "of how much"),
        (",,,5,,,", "wallet", "no wallet"),
        ("eve\u{7},,,5,,,", "wallet", "cannot name"),
    ] {
        let file = write(&home, "people.csv", &table(bad));
        let output = home.run(&["wallet", "import", &file]);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{bad}: {told}");
        assert!(told.contains(&format!("row 1999, column {column}: ")) && told.contains(said), "{bad}: {told}");
        assert_eq!(home.books(), books, "{bad}");
    }
    for (table, said) in [
        (table("eve,,,5").as_str(), "row 1999"),
        ("wallet,amuont\nada,5\n", "`amuont`"),
        ("amount\n5\n", "no column `wallet`"),
        ("wallet,wallet\nada,ada\n", "twice"),
    ] {
        let file = write(&home, "people.csv", table);
        let output = home.run(&["wallet", "import", &file]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
        assert_eq!(home.books(), books);
    }
    assert_eq!(home.run(&["wallet", "import", "/nowhere.csv"]).status.code(), Some(1));
    home.verify();
}
