// Icons as strokes; all of them decorate text or a label.
const PATHS = {
  sessions: "M3 5h14M3 10h14M3 15h9",
  clusters: "M4 3h12v5H4zM4 12h12v5H4zM7 5.5h.01M7 14.5h.01",
  catalogs: "M4 5c0-1.7 12-1.7 12 0v10c0 1.7-12 1.7-12 0zM4 5c0 1.7 12 1.7 12 0M4 10c0 1.7 12 1.7 12 0",
  org: "M3 17V6l7-3 7 3v11M7 17v-4h6v4M7 8h.01M13 8h.01M10 8h.01",
  usage: "M3 17h14M5 14V9M10 14V4M15 14v-7",
  audit: "M5 3h8l3 3v11H5zM8 9h5M8 13h5",
  plus: "M10 4v12M4 10h12",
  close: "M5 5l10 10M15 5L5 15",
  copy: "M7 7h9v9H7zM4 13V4h9",
  check: "M4 10.5l4 4 8-9",
  key: "M12.5 3.5a4 4 0 1 1-3.4 6.1L3 15.7V17h3v-2h2v-2h1.5l1.2-1.2M13 7h.01",
  clock: "M10 3a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM10 6v4l3 2",
  stop: "M5 5h10v10H5z",
  sun: "M10 6.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7zM10 2v1.5M10 16.5V18M2 10h1.5M16.5 10H18M4.4 4.4l1 1M14.6 14.6l1 1M4.4 15.6l1-1M14.6 5.4l1-1",
  edit: "M4 16l1-4 8-8 3 3-8 8z",
  warning: "M10 3l8 14H2zM10 8.5v3.5M10 14.5h.01",
  info: "M10 3a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM10 9v4.5M10 6.5h.01",
  lock: "M5 9h10v8H5zM7 9V6.5a3 3 0 0 1 6 0V9",
  box: "M3 6.5L10 3l7 3.5v7L10 17l-7-3.5zM3 6.5l7 3.5 7-3.5M10 10v7",
  refresh: "M16 10a6 6 0 1 1-1.8-4.3M16 3v3.5h-3.5",
  search: "M9 4a5 5 0 1 0 0 10A5 5 0 0 0 9 4zM12.7 12.7L17 17",
  menu: "M3 5h14M3 10h14M3 15h14",
  out: "M8 4H4v12h4M9 10h8M14 7l3 3-3 3",
  circle: "M10 5a5 5 0 1 0 0 10 5 5 0 0 0 0-10z",
  left: "M12 4l-6 6 6 6",
  right: "M8 4l6 6-6 6",
  moon: "M15.5 12A6.5 6.5 0 0 1 8 4.5 6.5 6.5 0 1 0 15.5 12z",
  half: "M10 4a6 6 0 1 0 0 12zM10 4a6 6 0 0 1 0 12",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon(props: { name: IconName; size?: number }) {
  const size = props.size ?? 16;
  return (
    <svg class="icon" viewBox="0 0 20 20" width={size} height={size} aria-hidden="true" focusable="false">
      <path d={PATHS[props.name]} />
    </svg>
  );
}
