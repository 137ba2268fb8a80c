"""A page as a browser would take it in: its elements and its text."""

from html.parser import HTMLParser

CLASSES = ("<script>alert(1)</script>", 'plain & "quoted"', "Größe 'x'")  # of the pictures here
EMPTY = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Every element with its attributes and its own text, in order; raises for elements that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict, list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in EMPTY:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data):
        if self.open:
            self.elements[self.open[-1]][2].append(data)

    def all(self, *tags: str) -> list[tuple[str, dict, str]]:
        return [(tag, attrs, "".join(text)) for tag, attrs, text in self.elements if tag in tags]

    def texts(self, *tags: str) -> list[str]:
        return [text for _, _, text in self.all(*tags)]

    @property
    def text(self) -> str:
        """All that people see."""
        hidden = ("script", "style")
        return " ".join("".join(text) for tag, _, text in self.elements if tag not in hidden)
