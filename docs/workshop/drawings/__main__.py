"""Draw every figure of the book: ``python -m workshop.drawings`` in the folder ``docs``."""

from workshop.drawings import draw_all

for path in draw_all():
    print(path)
