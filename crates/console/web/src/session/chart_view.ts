// Charts by uPlot; a script of its own, loaded when a chart is shown.
import uPlot from "uplot";

export interface Series {
  name: string;
  /** A custom property of the style sheet. */
  color: string;
  values: number[];
  steps?: boolean;
}

export interface Chart {
  update(at: number[], series: Series[]): void;
  destroy(): void;
}

const HEIGHT = 150;

/** Draws a chart that follows the width of its place and the colour scheme. */
export function draw(place: HTMLElement, at: number[], series: Series[], unit: (value: number) => string): Chart {
  let data: uPlot.AlignedData = [at, ...series.map((each) => each.values)];
  let plot = create(place, data, series, unit);
  const resize = new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: HEIGHT }));
  resize.observe(place);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const again = () => {
    plot.destroy();
    plot = create(place, data, series, unit);
  };
  scheme.addEventListener("change", again);
  return {
    update: (times, values) => {
      data = [times, ...values.map((each) => each.values)];
      plot.setData(data);
    },
    destroy: () => {
      resize.disconnect();
      scheme.removeEventListener("change", again);
      plot.destroy();
    },
  };
}

function create(place: HTMLElement, data: uPlot.AlignedData, series: Series[], unit: (value: number) => string): uPlot {
  const style = getComputedStyle(place);
  const color = (name: string) => style.getPropertyValue(name).trim();
  const font = `11px ${style.fontFamily}`;
  const axis = { stroke: color("--muted"), font, grid: { stroke: color("--border"), width: 1 }, ticks: { show: false } };
  const steps = uPlot.paths.stepped?.({ align: 1 });
  return new uPlot(
    {
      width: Math.max(200, place.clientWidth),
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      padding: [8, 8, 0, 0],
      scales: { y: { range: (_, __, max) => [0, Math.max(1, max * 1.1)] } },
      axes: [
        { ...axis, size: 30, space: 80, values: (_, ticks) => ticks.map((tick) => new Date(tick * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" })) },
        { ...axis, size: 70, values: (_, ticks) => ticks.map(unit) },
      ],
      series: [
        {},
        ...series.map((each) => ({ label: each.name, stroke: color(each.color), width: 2, points: { show: false }, ...(each.steps && steps ? { paths: steps } : {}) })),
      ],
    },
    data,
    place,
  );
}
