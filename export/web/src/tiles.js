// Overlapping tiles that cover a large picture: codec/tiles.py in JavaScript. Lengths are in positions of y (16 pixels).

const SIZE = [24, 32], LARGEST_WHOLE = 4 * SIZE[0] * SIZE[1];

/** Tiles {size, place, first, end}, each [rows, columns], for a y of `whole` rows and columns. */
export function tilesOf(whole, margins) {
  const large = margins !== null && whole[0] * whole[1] > LARGEST_WHOLE;
  const size = large ? tileSize(whole, margins) : whole;
  const [rows, columns] = whole.map((length, i) => spans(length, size[i], margins ?? [2, 2]));
  return rows.flatMap((row) => columns.map((column) => {
    const [place, first, end] = row.map((value, i) => [value, column[i]]);
    return { size, place, first, end };
  }));
}

function tileSize(whole, [before, after]) {
  const least = SIZE.map((side) => Math.max(side, 4 * (before + after))), area = least[0] * least[1];
  const [rows, columns] = whole.map((length, i) => Math.min(length, least[i]));
  return [
    Math.min(whole[0], Math.max(rows, Math.floor(area / columns))),
    Math.min(whole[1], Math.max(columns, Math.floor(area / rows))),
  ];
}

/** [start, first kept position, end of what is kept] of each tile along one side. */
function spans(length, size, [before, after]) {
  if (size >= length) return [[0, 0, length]];
  const places = [];
  for (let place = 0; place < length - size; place += size - before - after) places.push(place);
  places.push(length - size);
  const edges = [0, ...places.slice(1).map((place) => place + before), length];
  return places.map((place, i) => [place, edges[i], edges[i + 1]]);
}
