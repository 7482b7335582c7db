"""What hostile and damaged files do to every reader (`files`), and what a kill does to every writer (`kill`).

    python -m scripts.fuzz.files --seed 1 --count 100000        all readers, in worker processes under a watch
    python -m scripts.fuzz.kill --seed 1 --count 200            commands, killed at random and at every step

Seeded: the same seed gives the same inputs. docs/reliability.md has the figures.
"""
