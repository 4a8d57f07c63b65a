//! The complete list of rows.

mod balancers;
mod flows;
mod logic;
mod networking;
mod services;

/// How a row can be checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mark {
    /// Packets, as the upstream case sends them.
    Y,
    /// Packets; steps in the life of a pod or an object become edits of manifests.
    T,
    /// Objects in, tables or answers out: unit tests of the control plane.
    L,
    /// Not a proxy's: the API server's, the kubelet's, a cloud's. Out of scope.
    N,
}

/// One upstream case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Row {
    /// Section and number.
    pub id: &'static str,
    /// How it can be checked.
    pub mark: Mark,
    /// What it is about, in our words.
    pub title: &'static str,
}

const fn row(id: &'static str, mark: Mark, title: &'static str) -> Row {
    Row { id, mark, title }
}

/// Every row, in the order of sections.
pub fn all() -> impl Iterator<Item = &'static Row> {
    [
        services::ROWS,
        balancers::ROWS,
        networking::ROWS,
        flows::ROWS,
        logic::ROWS,
    ]
    .into_iter()
    .flatten()
}

/// The row of an id.
pub fn find(id: &str) -> Option<&'static Row> {
    all().find(|row| row.id == id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn ids_are_unique_and_complete() {
        let mut sections: BTreeMap<char, Vec<u32>> = BTreeMap::new();
        for row in all() {
            let (section, number) = row.id.split_at(1);
            let section = section.chars().next().expect("a letter");
            let number = number.parse().expect("a number");
            sections.entry(section).or_default().push(number);
        }
        let counts: Vec<_> = sections
            .iter()
            .map(|(section, numbers)| {
                let mut sorted = numbers.clone();
                sorted.sort_unstable();
                let last = u32::try_from(numbers.len()).expect("few");
                assert_eq!(sorted, (1..=last).collect::<Vec<_>>(), "section {section}");
                (*section, last)
            })
            .collect();
        let expected = [
            ('B', 19),
            ('C', 6),
            ('D', 24),
            ('E', 20),
            ('F', 7),
            ('G', 18),
            ('H', 106),
            ('I', 18),
            ('J', 30),
            ('K', 18),
            ('S', 51),
        ];
        assert_eq!(counts, expected);
        let out = all().filter(|row| row.mark == Mark::N).count();
        assert_eq!(out, 26, "rows out of scope");
    }
}
