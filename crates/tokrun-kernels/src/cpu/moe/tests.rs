use super::{Choice, Workspace, route};
use crate::Routing;

fn chosen(logits: &[f32], experts_per_token: usize, normalise: bool) -> Vec<(usize, f32)> {
    let mut choices = Vec::new();
    route(logits, Routing { experts_per_token, normalise }, &mut choices);
    choices.into_iter().map(|Choice { expert, share, .. }| (expert, share)).collect()
}

#[test]
fn the_best_experts_come_first_and_of_equal_ones_the_first() {
    let experts = |logits: &[f32], count| chosen(logits, count, true).iter().map(|c| c.0).collect::<Vec<_>>();
    assert_eq!(experts(&[0.0, 3.0, 1.0, 2.0], 3), [1, 3, 2]);
    assert_eq!(experts(&[1.0, 2.0, 2.0, 1.0, 2.0], 4), [1, 2, 4, 0]);
    assert_eq!(experts(&[5.0; 64], 3), [0, 1, 2]);
    assert_eq!(experts(&[1.0, 2.0], 2), [1, 0]);
}

#[test]
fn shares_are_of_the_chosen_or_of_all() {
    let logits = [0.0, 2f32.ln(), 4f32.ln(), 0.0];
    for ((expert, share), expected) in chosen(&logits, 2, true).into_iter().zip([(2, 4.0 / 6.0), (1, 2.0 / 6.0)]) {
        assert_eq!(expert, expected.0);
        assert!((share - expected.1).abs() < 1e-6);
    }
    for ((_, share), expected) in chosen(&logits, 2, false).into_iter().zip([4.0 / 8.0, 2.0 / 8.0]) {
        assert!((share - expected).abs() < 1e-6);
    }
}

#[test]
fn rows_are_sorted_by_expert() {
    let mut workspace = Workspace::default();
    let router = [0.0, 1.0, 2.0, /* */ 2.0, 1.0, 0.0, /* */ 0.0, 2.0, 1.0];
    workspace.choose(&router, Routing { experts_per_token: 2, normalise: true }, 3);
    assert_eq!(workspace.starts, [0, 1, 4, 6]);
    assert_eq!(workspace.rows, [1, 0, 1, 2, 0, 2]);
    // Best first: the row chose expert 2, whose first row it is, then expert 1.
    let outputs: Vec<usize> = workspace.choices.iter().map(|choice| choice.output).collect();
    assert_eq!(outputs, [4, 1, 0, 2, 3, 5]);
}
