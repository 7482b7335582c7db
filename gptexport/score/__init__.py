"""Score a corpus: log-probs of every token of many documents, in shards that are written once. Torch-free.

    documents.py   files become chunks of ids
    windows.py     chunks become windows, windows shards, a shard batches
    scorer.py      a shard becomes log-probs
    tables.py      log-probs become Parquet, Parquet totals
    job.py         all of it, and what a killed run has finished is not done again

Every number is a function of the input and of the settings that the first run stores, so that it does not matter who
computes a shard, or how often a run was killed.
"""

from gptexport.score.documents import Reading
from gptexport.score.job import Asked, Progress, score_corpus

__all__ = ["Asked", "Progress", "Reading", "score_corpus"]
