"""What hostile and damaged files do to every reader.

    python -m scripts.fuzz.files --seed 1 --count 100000        all readers, in worker processes under a watch

Seeded: the same seed gives the same inputs. docs/reliability.md has the figures.
"""
