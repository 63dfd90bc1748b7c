"""The app: trained models in a browser. Each tab is a file; all of them call `m3ae.inference`."""
