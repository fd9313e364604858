//! "Did you mean …": the known name that is closest to a mistyped one.
//!
//! Distance is optimal string alignment: insertions, deletions, substitutions and swaps of
//! neighbours count one each.

/// The closest of `known` to `name`, if it is close enough to be a typing mistake
/// (at most a third of the longer name's letters differ), the first of equals.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    known
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(name.len()) <= 8)
        .map(|candidate| (distance(&name, &candidate.to_lowercase()), candidate))
        .filter(|(d, candidate)| d * 3 <= name.chars().count().max(candidate.chars().count()))
        .min_by_key(|(d, _)| *d)
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance; names longer than 64 letters are cut, which bounds the work.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let substituted = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = substituted.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_a_swap_of_neighbours_as_one() {
        assert_eq!(distance("lora_rnak", "lora_rank"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn an_unrelated_name_has_no_nearest() {
        assert_eq!(nearest("frobnicate", ["lora_rank", "template"]), None);
        assert_eq!(nearest("learning_rat", ["lora_rank", "learning_rate"]), Some("learning_rate"));
    }
}
