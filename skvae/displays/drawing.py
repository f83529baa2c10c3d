"""What the displays share: colours, and axes to draw on."""

# Ten colours that can be told apart with every kind of colour vision (Petroff 2021, "Accessible color sequences").
COLORS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)


def axes_or_new(ax):
    """The axes given, or those of a new figure."""
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1] if ax is None else ax
