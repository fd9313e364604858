//! Expected figures are those of LLaMA-Factory's `ComputeSimilarity`: `goldens/similarity.py` writes them.

use serde_json::Value;

use super::Similarity;

#[test]
fn figures_are_those_of_jieba_nltk_and_rouge_chinese() {
    let rows: Value = serde_json::from_str(include_str!("../../goldens/similarity.json")).unwrap();
    for row in rows.as_array().unwrap() {
        let text = |key: &str| row[key].as_str().unwrap();
        let found = Similarity::of(text("predict"), text("label"));
        let number = |key: &str| row[key].as_f64().unwrap();
        let expected = Similarity {
            bleu_4: number("bleu-4"),
            rouge_1: number("rouge-1"),
            rouge_2: number("rouge-2"),
            rouge_l: number("rouge-l"),
        };
        assert_eq!(found, expected, "{row}");
    }
}

#[test]
fn the_mean_is_over_rows_and_0_of_none() {
    let rows = [1.0, 4.0].map(|x| Similarity { bleu_4: x, rouge_1: 2.0 * x, rouge_2: 0.0, rouge_l: x });
    let mean = Similarity { bleu_4: 2.5, rouge_1: 5.0, rouge_2: 0.0, rouge_l: 2.5 };
    assert_eq!(Similarity::mean(&rows), mean);
    assert_eq!(Similarity::mean(&[]), Similarity::default());
}
