"""The evidence: verdict, sections, plots, and the page that shows them."""
