"""Reports: tables, pages, plots and exports."""
