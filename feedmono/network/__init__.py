"""The exchange's connections and REST pages: the reader's parts."""
