"""The flags of a run that is over in a second."""

TINY = (
    "--encoder convnet --model.width 2 --image-size 16 --batch-size 8 --epochs 1 --device cpu "
    "--model.projection-hidden-size 32"
)
