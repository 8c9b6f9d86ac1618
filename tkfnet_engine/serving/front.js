// Run by nginx (njs) on each inference request, before Triton: what it does not understand goes no further.
//
// Triton 2.51 ends on shapes that overflow, on JSON tensors of the wrong length and on some requested outputs, and calls
// malformed JSON an error of its own. So a request's JSON is read here, whole and strictly, and tensors come in binary
// form behind it; docs/serving.md says how. `limits` are variables that nginx.conf sets.
//
// Never index with a literal, as in x[0]: njs 0.7.9 then takes every 0 of this file for the text "0".

const MAX_DEPTH = 6;
const WORDS = ['true', 'false', 'null'];

function refuse(message) {
    throw new Error('request: ' + message);
}

// --- JSON: no duplicate keys, no fractions, no halves of characters, all that is read differently by two readers ------

function parse(text) {
    let at = 0;

    function fail(expected) {
        refuse('its JSON at character ' + at + ': expected ' + expected);
    }

    function space() {
        while (at < text.length && ' \t\r\n'.indexOf(text[at]) >= 0) {
            at++;
        }
    }

    function string() {
        const start = at++;
        while (text[at] !== '"') {
            if (at >= text.length || text.charCodeAt(at) < 32) {
                fail('the end of a text');
            }
            if (text[at] === '\\') {
                at++;
                if (text[at] === 'u' && !/^(?!d[89a-f])[0-9a-f]{4}$/i.test(text.slice(at + 1, at + 5))) {
                    fail('a whole character');
                }
            }
            at++;
        }
        at++;
        try {
            return JSON.parse(text.slice(start, at));
        } catch (e) {
            fail('a text');
        }
    }

    function number() {
        const start = at;
        while (at < text.length && '+-.eE0123456789'.indexOf(text[at]) >= 0) {
            at++;
        }
        const found = text.slice(start, at);
        if (!/^(0|-?[1-9][0-9]{0,14})$/.test(found)) {
            at = start;
            fail('a whole number of at most 15 digits, where tensors are in binary form');
        }
        return Number(found);
    }

    function value(depth) {
        space();
        if (depth > MAX_DEPTH) {
            fail('no deeper nesting');
        }
        if (text[at] === '{') {
            return members(depth);
        }
        if (text[at] === '[') {
            return elements(depth);
        }
        if (text[at] === '"') {
            return string();
        }
        const word = WORDS.find(one => text.startsWith(one, at));
        if (word === undefined) {
            return number();
        }
        at += word.length;
        return JSON.parse(word);
    }

    // After an element: whether another one follows.
    function another(close) {
        space();
        if (text[at] !== ',' && text[at] !== close) {
            fail('a comma or ' + close);
        }
        return text[at++] === ',';
    }

    function elements(depth) {
        const found = [];
        at++;
        space();
        if (text[at] === ']') {
            at++;
            return found;
        }
        do {
            found.push(value(depth + 1));
        } while (another(']'));
        return found;
    }

    function members(depth) {
        const found = Object.create(null);
        at++;
        space();
        if (text[at] === '}') {
            at++;
            return found;
        }
        do {
            space();
            if (text[at] !== '"') {
                fail('a key');
            }
            const key = string();
            if (key in found) {
                fail('each key once');
            }
            space();
            if (text[at++] !== ':') {
                at--;
                fail('a colon');
            }
            found[key] = value(depth + 1);
        } while (another('}'));
        return found;
    }

    const whole = value(0);
    space();
    if (at !== text.length) {
        fail('its end');
    }
    return whole;
}

// --- what a request says ---------------------------------------------------------------------------------------------

function isObject(value) {
    return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isCount(value, low, high) {
    return typeof value === 'number' && value >= low && value <= high;
}

function isText(value) {
    return typeof value === 'string' && value.length <= 128 && /^[\x20-\x7e]*$/.test(value);
}

// rules: key -> what is expected, and whether a value `is` that.
function checkFields(where, value, rules) {
    if (!isObject(value)) {
        refuse(where + ': expected an object');
    }
    Object.keys(value).forEach(key => {
        if (Object.keys(rules).indexOf(key) < 0) {
            const shown = isText(key) ? key : 'a key';
            refuse(where + ': got ' + shown + ', expected ' + Object.keys(rules).join(', '));
        }
        if (!rules[key].is(value[key])) {
            refuse(where + '.' + key + ': expected ' + rules[key].what);
        }
    });
}

const ANY = {is: () => true, what: ''};
const TEXT = {is: isText, what: 'a text of at most 128 printable ASCII characters'};
const FLAG = {is: value => typeof value === 'boolean', what: 'true or false'};

function checkInput(input, bytes, limits) {
    if (isObject(input) && 'data' in input) {
        refuse('inputs[0].data: numbers as JSON, expected the tensor in binary form: parameters.binary_data_size');
    }
    checkFields('inputs[0]', input, {name: TEXT, datatype: TEXT, shape: ANY, parameters: ANY});
    const shape = input.shape;
    if (!isText(input.name) || !isText(input.datatype) || !Array.isArray(shape)) {
        refuse('inputs[0]: expected name, datatype and shape');
    }
    const elements = shape.reduce((product, size) => product * (isCount(size, 1, 65536) ? size : 0), 1);
    const images = shape.slice(0, 1).pop();
    if (shape.length < 1 || shape.length > 8 || elements < 1 || elements > Math.pow(2, 30)) {
        refuse('inputs[0].shape: expected 1 to 8 whole numbers from 1 on, of at most 2^30 elements');
    }
    if (images > limits.images) {
        refuse('inputs[0].shape: got ' + images + ' images, expected at most ' + limits.images + '; send several requests');
    }
    checkFields('inputs[0].parameters', input.parameters, {binary_data_size: ANY});
    if (input.parameters.binary_data_size !== bytes) {
        refuse('inputs[0].parameters.binary_data_size: expected the ' + bytes + ' bytes that follow the JSON');
    }
}

function check(head, bytes, limits) {
    checkFields('JSON', head, {
        id: TEXT, model_name: TEXT, model_version: TEXT, parameters: ANY, inputs: ANY, outputs: ANY,
    });
    if (!Array.isArray(head.inputs) || head.inputs.length !== 1) {
        refuse('inputs: expected an array of 1 tensor');
    }
    head.inputs.forEach(input => checkInput(input, bytes, limits));
    if ('parameters' in head) {
        checkFields('parameters', head.parameters, {
            priority: {is: value => isCount(value, 0, 2), what: '0 to 2; 1 goes first'},
            timeout: {is: value => isCount(value, 1, 3600000000), what: 'microseconds, from 1 on'},
            binary_data_output: FLAG,
        });
    }
    const outputs = 'outputs' in head ? head.outputs : [];
    if (!Array.isArray(outputs) || outputs.length > 8) {
        refuse('outputs: expected an array of at most 8');
    }
    for (let i = 0; i < outputs.length; i++) {
        const where = 'outputs[' + i + ']';
        checkFields(where, outputs[i], {name: TEXT, parameters: ANY});
        if (!isText(outputs[i].name)) {
            refuse(where + ': expected a name');
        }
        if ('parameters' in outputs[i]) {
            checkFields(where + '.parameters', outputs[i].parameters, {
                binary_data: FLAG,
                classification: {is: value => isCount(value, 0, 1000), what: '0 to 1000 labels'},
            });
        }
    }
}

function checkRequest(r) {
    const declared = r.headersIn['Inference-Header-Content-Length'];
    const limits = {images: Number(r.variables.limit_images), json: Number(r.variables.limit_json)};
    if (declared === undefined) {
        refuse(
            'no header Inference-Header-Content-Length, expected one: the bytes of JSON before the tensor, which is in ' +
            'binary form, or 0 for a tensor alone'
        );
    }
    if (!/^(0|[1-9][0-9]{0,5})$/.test(declared) || Number(declared) > limits.json) {
        refuse('Inference-Header-Content-Length: expected 0 to ' + limits.json);
    }
    let body;
    try {
        body = r.requestBuffer;
    } catch (e) {
        refuse('in too many small pieces, expected larger ones, or a Content-Length');
    }
    if (body === undefined || !body.length) {
        refuse('empty, expected a tensor');
    }
    const length = Number(declared);
    if (length > body.length) {
        refuse('Inference-Header-Content-Length: got ' + length + ', but the body has ' + body.length + ' bytes');
    }
    if (length === 0) {
        return;
    }
    let text;
    try {
        text = new TextDecoder('utf-8', {fatal: true}).decode(body.subarray(0, length));
    } catch (e) {
        refuse('its JSON is no UTF-8');
    }
    check(parse(text), body.length - length, limits);
}

function infer(r) {
    try {
        checkRequest(r);
    } catch (e) {
        const known = e.message.startsWith('request: ');
        if (!known) {
            r.error(e.message);
        }
        r.headersOut['Content-Type'] = 'application/json';
        r.return(400, JSON.stringify({error: known ? e.message : 'request: not understood'}));
        return;
    }
    r.internalRedirect('/checked' + r.uri);
}

export default {infer};
