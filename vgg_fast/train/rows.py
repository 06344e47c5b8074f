"""The rows of a run's history: what each epoch came to."""

# Of the history, with --average-views: a number.
AVERAGED = "test_accuracy_averaged"
# Of the history; each a number.
ROW = (
    *("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"),
    *("images_per_second", "learning_rate"),
)
