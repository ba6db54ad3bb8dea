// A click, or Enter or Space on the focused image, rejects a synthetic image or takes it back.
const picks = [...document.querySelectorAll('.pick')];
const rejected = new Set();
const bar = document.querySelector('.bar');

function show() {
  for (const pick of picks) pick.setAttribute('aria-pressed', rejected.has(pick.dataset.file));
  bar.querySelector('output').textContent = `${rejected.size} rejected`;
  bar.hidden = !rejected.size && !bar.dataset.rejected;
}

function toggle(file) {
  if (!rejected.delete(file)) rejected.add(file);
  show();
}

function save() {
  const text = [...rejected].sort().map(file => file + '\n').join('');
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: 'text/plain' }));
  link.download = 'rejected.txt';
  link.click();
}

for (const file of JSON.parse(bar.dataset.rejected || '[]')) rejected.add(file);
for (const pick of picks) pick.addEventListener('click', () => toggle(pick.dataset.file));
bar.querySelector('button').addEventListener('click', save);
show();
