"""Ready steps of chains: texts, pictures and signals in front of a model, vectors and labels behind it.

    texts ---> BatchTokenizer -+              +-> Pooler  --> embedding
    pictures -> PictureReader -+--> model ----+-> Labeler --> label, score, scores
    samples --> Framer --------+

Each is a function of a step, as users write them (see `operators.core.execution.step`): one call for all rows. A row
that cannot be read raises `UnreadableInput`, and the step finds it by halving the batch.
"""
