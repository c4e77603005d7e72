// Draws what a terminal shows, with its colours, by xterm.js in a real Chromium.
//
// node terminal.mjs MODULES BROWSER FOLDER NAME=COLUMNS=FILE...
// Each file holds lines with escape sequences, as `tmux capture-pane -e` or a program writes them.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const [modules, executablePath, folder, ...pictures] = process.argv.slice(2);
const require = createRequire(join(modules, 'package.json'));
const puppeteer = require('puppeteer-core');
const xterm = require.resolve('@xterm/xterm');

const browser = await puppeteer.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
for (const picture of pictures) {
  const [name, columns, file] = picture.split('=');
  const text = readFileSync(file, 'utf8').replace(/\n+$/, '');
  const lines = text.split('\n');
  const page = await browser.newPage();
  await page.setViewport({ width: 1600, height: 1200, deviceScaleFactor: 1.5 });
  await page.setContent('<body style="margin:0;background:#16181d"><div id="screen" style="display:inline-block;padding:14px 16px"></div>');
  await page.addStyleTag({ path: join(xterm, '../../css/xterm.css') });
  await page.addScriptTag({ path: xterm });
  await page.evaluate(async (text, cols, rows) => {
    const terminal = new globalThis.Terminal({
      cols, rows, fontSize: 14, fontFamily: 'Liberation Mono, monospace', convertEol: true, scrollback: 0, cursorInactiveStyle: 'none',
      theme: { background: '#16181d', foreground: '#d7dae0' },
    });
    terminal.open(document.getElementById('screen'));
    await new Promise(done => terminal.write(`\x1b[?25l${text}`, done));
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  }, text, Number(columns), lines.length);
  await (await page.$('#screen')).screenshot({ path: join(folder, `${name}.png`) });
  await page.close();
}
await browser.close();
