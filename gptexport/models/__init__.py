"""One textbook forward per architecture: `forward(idx)` returns logits (B,T,V), always, at every position."""
