"""Scores of decoded text: BLEU, chrF, TER, WER, CER, duration buckets and result tables."""
