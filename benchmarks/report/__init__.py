"""The report: which keys `report.json` holds, and the page that shows them."""
