import "./css/base.css";
import "./css/layout.css";
import "./css/parts.css";
import "./css/forms.css";
import "./css/tables.css";
import "./css/session.css";
import "uplot/dist/uPlot.min.css";
import { render } from "preact";
import { App } from "./app.tsx";
import { refreshAuth } from "./state/auth.ts";

const root = document.getElementById("app");
if (root) {
  render(<App />, root);
  void refreshAuth();
}
